//! Platforms as `--platform` names them: `os[/arch[/variant]]`, with the same other names for the
//! same machine that containerd's `platforms.Parse` knows.

use std::fmt;

/// An operating system on a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux` …
    pub os: String,
    /// `amd64`, `arm64` … as Go names them.
    pub arch: String,
    /// `v7` …; often empty.
    pub variant: String,
}

const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const PROCESSORS: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv", "riscv64", "s390x", "wasm",
];

impl Platform {
    /// That of this machine: the only one that is built for.
    pub fn host() -> Self {
        let (arch, variant) = match std::env::consts::ARCH {
            "x86" => ("386", ""),
            "arm" => ("arm", "v7"),
            "loongarch64" => ("loong64", ""),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            other => same_arch(other),
        };
        Self { os: "linux".into(), arch: arch.into(), variant: variant.into() }
    }

    /// Reads `linux/arm64`, `arm64`, `linux`, `linux/arm/v6` …
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a platform such as `linux/amd64`");
        let parts: Vec<&str> = text.split('/').collect();
        let fits = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        };
        // The version of an operating system, `windows(10.0)`, is of no use here.
        let os = match parts[0].split_once('(') {
            Some((os, version)) if version.ends_with(')') => os,
            _ => parts[0],
        };
        if !fits(&os) || !parts[1..].iter().all(fits) {
            return Err(wrong());
        }
        let lower = os.to_ascii_lowercase();
        let os = if lower == "macos" { "darwin".to_owned() } else { lower };
        let host = Self::host();
        let given = parts.get(2).copied().unwrap_or_default();
        let named = |name: &str| {
            let name = name.to_ascii_lowercase();
            let (arch, variant) = match name.as_str() {
                "arm" if given.is_empty() => ("arm", "v7"),
                other => same_arch(other),
            };
            let variant = if given.is_empty() { variant } else { given };
            let none = matches!((arch, variant), ("arm64", "v8" | "8") | ("amd64", "v1"));
            (arch.to_owned(), if none { String::new() } else { variant.to_owned() })
        };
        let (os, (arch, variant)) = match parts.as_slice() {
            [_] if SYSTEMS.contains(&os.as_str()) => (os, (host.arch, host.variant)),
            [_] if PROCESSORS.contains(&named(&os).0.as_str()) => (host.os, named(&os)),
            [_, arch] | [_, arch, _] => (os, named(arch)),
            _ => return Err(wrong()),
        };
        Ok(Self { os, arch, variant })
    }

    /// Whether what is built for `self` runs where `other` runs: variants are not told apart.
    pub fn fits(&self, other: &Self) -> bool {
        self.os == other.os && self.arch == other.arch
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// Other names of the same processor.
fn same_arch(name: &str) -> (&str, &str) {
    match name {
        "i386" => ("386", ""),
        "x86_64" | "x86-64" => ("amd64", ""),
        "aarch64" => ("arm64", ""),
        "armhf" => ("arm", "v7"),
        "armel" => ("arm", "v6"),
        other => (other, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::Platform;

    #[test]
    fn other_names_mean_the_same() {
        let host = Platform::host().to_string();
        for (text, expected) in [
            ("linux/amd64", Some("linux/amd64")),
            ("Linux/X86_64", Some("linux/amd64")),
            ("linux/aarch64", Some("linux/arm64")),
            ("linux/arm64/v8", Some("linux/arm64")),
            ("linux/arm", Some("linux/arm/v7")),
            ("linux/armel", Some("linux/arm/v6")),
            ("linux/arm/v6", Some("linux/arm/v6")),
            ("arm64", Some("linux/arm64")),
            ("s390x", Some("linux/s390x")),
            ("linux", Some(host.as_str())),
            ("windows(10.0.1)/amd64", Some("windows/amd64")),
            ("darwin/ppc64le", Some("darwin/ppc64le")),
            ("", None),
            ("toaster", None),
            ("linux/", None),
            ("linux/a b", None),
            ("a/b/c/d", None),
            ("linux/*", None),
        ] {
            let found = Platform::parse(text).ok().map(|platform| platform.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        assert!(Platform::parse("linux").unwrap().fits(&Platform::host()));
    }
}
