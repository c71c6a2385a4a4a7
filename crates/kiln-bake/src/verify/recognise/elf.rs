//! ELF files: build ids, which follow from other differences.

use std::ops::Range;

use super::{Known, bytes, first_difference};
use crate::verify::cause::{Cause, Finding};

/// If both are ELF files: a build id alone, or what differs beside it.
pub(super) fn recognise(a: &[u8], b: &[u8], known: Known<'_>, depth: usize) -> Option<Finding> {
    if !a.starts_with(b"\x7fELF") || !b.starts_with(b"\x7fELF") {
        return None;
    }
    let (first, second) = (build_id(a)?, build_id(b)?);
    if first != second || a[first.clone()] == b[second.clone()] {
        return None;
    }
    let blank = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[first.clone()].fill(0);
        // Else it would be found again.
        bytes[0] = 0;
        bytes
    };
    let (blank_a, blank_b) = (blank(a), blank(b));
    if first_difference(&blank_a, &blank_b).is_none() {
        return Some(Finding::new(
            Cause::BuildId,
            "the note .note.gnu.build-id is all that differs: it is taken over what was stripped",
        ));
    }
    let other = bytes(&blank_a, &blank_b, known, depth);
    Some(Finding { evidence: format!("{}; the build id follows from it", other.evidence), ..other })
}

/// Where the build id is, by the head of its note: type 3, name "GNU".
fn build_id(bytes: &[u8]) -> Option<Range<usize>> {
    const HEAD: &[u8] = b"\x03\0\0\0GNU\0";
    let at = bytes.windows(HEAD.len()).position(|window| window == HEAD)?;
    let length = bytes.get(at.checked_sub(4)?..at)?;
    let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let begin = at + HEAD.len();
    (length <= 64 && begin + length <= bytes.len()).then_some(begin..begin + length)
}
