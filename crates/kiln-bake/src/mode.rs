//! `--chmod`: octal, or symbolic as chmod(1) reads it (`u+x,go-w`, `a=rX`).

/// A parsed `--chmod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    /// Exactly these bits.
    Octal(u16),
    /// Changes to the bits that are there.
    Symbolic(Vec<Clause>),
}

/// One clause of a symbolic mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    who: u16,
    op: char,
    perms: String,
}

const USER: u16 = 0o4700;
const GROUP: u16 = 0o2070;
const OTHER: u16 = 0o1007;

impl Chmod {
    /// Reads the flag's value.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return match u16::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o7777 => Ok(Self::Octal(mode)),
                _ => Err(format!(
                    "invalid chmod parameter: '{text}'. it should be octal string and between 0 \
                     and 07777"
                )),
            };
        }
        let error =
            || format!("invalid chmod parameter: '{text}' is neither octal nor like `u+x,go-w`");
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let who_end = part.find(['+', '-', '=']).ok_or_else(error)?;
            let mut who = 0;
            for c in part[..who_end].chars() {
                who |= match c {
                    'u' => USER,
                    'g' => GROUP,
                    'o' => OTHER,
                    'a' => USER | GROUP | OTHER,
                    _ => return Err(error()),
                };
            }
            if who == 0 {
                who = USER | GROUP | OTHER;
            }
            let mut rest = &part[who_end..];
            while let Some(op) = rest.chars().next() {
                let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
                let perms = &rest[1..end];
                let copies = perms.len() == 1 && "ugo".contains(perms);
                if !copies && !perms.chars().all(|c| "rwxXst".contains(c)) {
                    return Err(error());
                }
                clauses.push(Clause { who, op, perms: perms.to_owned() });
                rest = &rest[end..];
            }
        }
        Ok(Self::Symbolic(clauses))
    }

    /// The mode of an entry that has `mode`.
    pub fn apply(&self, mode: u16, is_dir: bool) -> u16 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_dir))
            }
        }
    }

    /// The mode of parents that have to be made: BuildKit gives them an octal mode too.
    pub fn of_parents(&self) -> u16 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(_) => 0o755,
        }
    }
}

impl Clause {
    fn apply(&self, mode: u16, is_dir: bool) -> u16 {
        let spread = |bits: u16| bits << 6 | bits << 3 | bits;
        let mut bits = 0;
        for c in self.perms.chars() {
            bits |= match c {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                's' => 0o6000,
                't' => 0o1000,
                'u' => spread(mode >> 6 & 7),
                'g' => spread(mode >> 3 & 7),
                'o' => spread(mode & 7),
                _ => 0,
            };
        }
        let bits = bits & self.who;
        match self.op {
            '+' => mode | bits,
            '-' => mode & !bits,
            // chmod(1) leaves the set-id bits of directories alone unless they are named.
            _ => mode & !(self.who & if is_dir { 0o1777 } else { 0o7777 }) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, mode, dir, expected) in [
            ("755", 0o644, false, Some(0o755)),
            ("4755", 0o644, false, Some(0o4755)),
            ("0", 0o644, false, Some(0)),
            ("u+x", 0o644, false, Some(0o744)),
            ("+x", 0o644, false, Some(0o755)),
            ("go-r", 0o644, false, Some(0o600)),
            ("a=rX", 0o644, false, Some(0o444)),
            ("a=rX", 0o700, false, Some(0o555)),
            ("a=rX", 0o700, true, Some(0o555)),
            ("u+s,o+t", 0o755, false, Some(0o5755)),
            ("g=u", 0o640, false, Some(0o660)),
            ("u=rw,go=", 0o755, false, Some(0o600)),
            ("u+r-w", 0o200, false, Some(0o400)),
            ("10000", 0o644, false, None),
            ("999", 0o644, false, None),
            ("rwx", 0o644, false, None),
            ("u+q", 0o644, false, None),
            ("", 0o644, false, None),
        ] {
            let found = Chmod::parse(text).ok().map(|chmod| chmod.apply(mode, dir));
            assert_eq!(found, expected, "{text}");
        }
    }
}
