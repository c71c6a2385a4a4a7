//! Where WebSocket frames from the server end: only there may the front say something itself.
//! RFC 6455 5.2.

/// A close frame with 1012, "service restart", as servers send it.
pub(super) const SERVICE_RESTART: [u8; 4] = [0x88, 2, 0x03, 0xf4];

/// Counts through a stream of frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Of the header of a frame, as far as it came.
    header: Vec<u8>,
    /// Of the payload, how much is to come.
    left: u64,
}

impl Frames {
    /// Whether a frame has just ended.
    pub(super) fn between(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }

    /// Takes what went by.
    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= now as u64;
                bytes = &bytes[now..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(length) = self.payload() {
                self.left = length;
                self.header.clear();
            }
        }
    }

    /// Length of the payload once the header is whole.
    fn payload(&self) -> Option<u64> {
        let short = self.header.get(1)? & 0x7f;
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        if self.header.len() < 2 + extended + mask {
            return None;
        }
        let length = &self.header[2..2 + extended];
        let long = length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        Some(if extended == 0 { u64::from(short) } else { long })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_found_however_the_bytes_come() {
        let long = [&[0x82, 126, 1, 0][..], &[7; 256]].concat();
        let longer = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[7; 65536]].concat();
        let frames: [&[u8]; 6] =
            [b"\x81\x02hi", b"\x89\x00", b"\x82\x81\x01\x02\x03\x04x", &long, &longer, b"\x81\x00"];
        let mut seen = Frames::default();
        assert!(seen.between());
        for frame in frames {
            for (at, byte) in frame.iter().enumerate() {
                seen.see(&[*byte]);
                assert_eq!(seen.between(), at + 1 == frame.len(), "{at}");
            }
        }
        let mut seen = Frames::default();
        seen.see(&frames.concat());
        assert!(seen.between());
        seen.see(b"\x81\x05hell");
        assert!(!seen.between());
    }
}
