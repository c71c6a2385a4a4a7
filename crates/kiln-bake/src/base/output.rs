//! What the packages' scripts print. Exit codes lie: a script may print an error and end well.

/// Lines that betray a failure whatever dpkg returns: the sandbox or the tree is broken.
const FATAL: [&str; 10] = [
    "error while loading shared libraries",
    "cannot execute",
    "exec format error",
    "segmentation fault",
    "bad system call",
    "read-only file system",
    "no space left on device",
    "dpkg: error",
    "subprocess returned error exit status",
    "traceback (most recent call last)",
];

/// Lines worth a look, which harmless scripts print too.
const SUSPICIOUS: [&str; 6] = [
    ": not found",
    "command not found",
    "no such file or directory",
    "permission denied",
    "operation not permitted",
    "function not implemented",
];

/// Most bytes of output that are kept: the last ones.
const KEPT: usize = 1 << 20;

/// The output while it comes.
#[derive(Debug, Default)]
pub(crate) struct Output {
    text: Vec<u8>,
    line: Vec<u8>,
    failed: Option<String>,
    fatal: Vec<String>,
    warnings: Vec<String>,
    /// How many packages dpkg has begun to configure.
    pub(crate) configured: u64,
}

/// The output when all is there.
#[derive(Debug)]
pub(crate) struct Log {
    /// The end of it, without the driver's own lines.
    pub(crate) text: String,
    failed: Option<String>,
    fatal: Vec<String>,
    warnings: Vec<String>,
}

impl Output {
    /// Takes a piece of output; returns the packages whose scripts began in it.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut begun = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                begun.extend(self.end_line(&String::from_utf8_lossy(&line)));
            } else if self.line.len() < 8192 {
                self.line.push(*byte);
            }
        }
        begun
    }

    /// The end of the output.
    pub(crate) fn finish(mut self) -> Log {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.end_line(&String::from_utf8_lossy(&line));
        }
        let text = String::from_utf8_lossy(&self.text).into_owned();
        Log { text, failed: self.failed, fatal: self.fatal, warnings: self.warnings }
    }

    fn end_line(&mut self, line: &str) -> Option<String> {
        if let Some(package) = line.strip_prefix("@kiln preinst ") {
            return Some(package.to_owned());
        }
        if let Some(what) = line.strip_prefix("@kiln failed ") {
            self.failed = Some(what.to_owned());
            return None;
        }
        self.text.extend_from_slice(line.as_bytes());
        self.text.push(b'\n');
        if self.text.len() > 2 * KEPT {
            self.text.drain(..KEPT);
        }
        let lower = line.to_ascii_lowercase();
        if FATAL.iter().any(|sign| lower.contains(sign)) {
            self.fatal.push(line.to_owned());
        } else if SUSPICIOUS.iter().any(|sign| lower.contains(sign)) {
            self.warnings.push(line.to_owned());
        }
        let setting_up = line.strip_prefix("Setting up ")?;
        self.configured += 1;
        setting_up.split([' ', ':']).next().map(str::to_owned)
    }
}

impl Log {
    /// Why the driver ended with `code`.
    pub(crate) fn failure(&self, code: i32) -> String {
        let found = self.failed.clone().or_else(|| {
            let mut lines = self.text.lines();
            let line = lines.find(|line| {
                line.starts_with("dpkg: error processing")
                    || line.starts_with("dpkg: dependency problems prevent")
            })?;
            let why = lines.next().unwrap_or_default().trim();
            Some(format!("{line} {why}"))
        });
        found.unwrap_or_else(|| format!("dpkg --configure ended with exit status {code}"))
    }

    /// The line that betrays a failure, if there is one.
    pub(crate) fn betrayed(&self) -> Option<String> {
        let line = self.fatal.first()?;
        Some(format!("dpkg ended well, yet a script printed `{line}`"))
    }

    /// Lines that the user should see.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_packages_across_pieces() {
        let mut output = Output::default();
        assert!(output.take(b"@kiln preinst ba").is_empty());
        assert_eq!(output.take(b"sh\nSetting up libc6:amd64 (2) ...\nSet"), ["bash", "libc6"]);
        assert_eq!(output.take(b"ting up a (1) ...\n"), ["a"]);
        assert_eq!(output.configured, 2);
        assert_eq!(output.finish().text, "Setting up libc6:amd64 (2) ...\nSetting up a (1) ...\n");
    }

    #[test]
    fn sees_errors_that_the_exit_code_hides() {
        let mut output = Output::default();
        output.take(b"x: error while loading shared libraries: y\nfoo: Permission denied");
        let log = output.finish();
        assert!(log.betrayed().unwrap().contains("shared libraries: y"));
        assert_eq!(log.warnings(), ["foo: Permission denied"]);
        let mut quiet = Output::default();
        quiet.take(b"invoke-rc.d: policy-rc.d denied execution of start.\n");
        assert!(quiet.finish().betrayed().is_none());
    }

    #[test]
    fn names_the_script_that_failed() {
        let mut output = Output::default();
        output.take(b"@kiln failed preinst script of a: exit status 3\n");
        assert_eq!(output.finish().failure(90), "preinst script of a: exit status 3");
        let mut output = Output::default();
        output.take(b"dpkg: error processing package a (--configure):\n boo\n");
        assert_eq!(
            output.finish().failure(1),
            "dpkg: error processing package a (--configure): boo"
        );
        assert!(Output::default().finish().failure(7).contains("status 7"));
    }

    #[test]
    fn keeps_the_end_of_long_output() {
        let mut output = Output::default();
        for _ in 0..30_000 {
            output.take(&[b"x".repeat(99), b"\n".to_vec()].concat());
        }
        output.take(b"last\n");
        let log = output.finish();
        assert!(log.text.len() <= 2 * KEPT && log.text.ends_with("last\n"));
    }
}
