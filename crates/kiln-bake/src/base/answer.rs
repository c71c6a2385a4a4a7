//! What apt says, read: files, names, errors.

use super::lock::LockedPackage;
use super::sources::Source;

/// A line `'URI' FILE SIZE SHA256:HEX` of `--print-uris`.
pub(crate) fn file(line: &str, sources: &[Source]) -> Option<LockedPackage> {
    let (uri, rest) = line.strip_prefix('\'')?.split_once('\'')?;
    let mut words = rest.split_whitespace();
    let (file, size, hash) = (words.next()?, words.next()?, words.next()?);
    let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
    let (name, version, arch) = (parts.next()?, parts.next()?, parts.next()?);
    Some(LockedPackage {
        name: name.to_owned(),
        version: unquote(version),
        arch: arch.to_owned(),
        filename: unquote(relative(uri, sources)?),
        size: size.parse().ok()?,
        sha256: hash.strip_prefix("SHA256:")?.parse().ok()?,
    })
}

/// The part of an address below its archive's root.
fn relative<'a>(uri: &'a str, sources: &[Source]) -> Option<&'a str> {
    let below = sources.iter().filter_map(|source| uri.strip_prefix(source.uri.as_str()));
    // The shortest rest is below the longest, so most exact, root.
    let known = below.min_by_key(|rest| rest.len());
    known.or_else(|| uri.find("/pool/").map(|at| &uri[at + 1..]))
}

/// The package that apt could not find, if that is what its output says.
pub(crate) fn unknown_package(output: &str) -> Option<String> {
    output.lines().find_map(|line| {
        let line = line.strip_prefix("E: ")?;
        if let Some(name) = line.strip_prefix("Unable to locate package ") {
            return Some(name.trim().to_owned());
        }
        let quoted = line.strip_suffix("has no installation candidate").or_else(|| {
            line.strip_suffix("was not found").filter(|line| line.starts_with("Version"))
        })?;
        let names: Vec<&str> = quoted.split(['\'', '‘', '’', '"']).collect();
        match (quoted.starts_with("Version"), names.as_slice()) {
            (true, [_, version, _, name, ..]) => Some(format!("{name}={version}")),
            (false, [_, name, ..]) => Some((*name).to_owned()),
            _ => None,
        }
    })
}

/// Lines of errors and warnings, else everything.
pub(crate) fn problems(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("E: ") || line.starts_with("W: ") || line.starts_with(' '))
        .collect();
    if lines.is_empty() { text.to_owned() } else { lines.join("\n") }
}

/// A package's name without an architecture.
pub(crate) fn plain(name: &str) -> String {
    name.split(':').next().unwrap_or(name).to_owned()
}

/// Undoes the percent form.
fn unquote(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The percent form of a path.
pub(crate) fn quote(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 8);
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_form_round_trips() {
        let path = "pool/main/g/g++/a_1%3a2+b~c_amd64.deb";
        assert_eq!(unquote(&quote(path)), path);
        assert_eq!(quote("a+~b"), "a%2b%7eb");
        assert_eq!(unquote("1%3a4.13%zz%"), "1:4.13%zz%");
    }

    #[test]
    fn finds_the_unknown_package_in_apts_words() {
        for (text, name) in [
            ("x\nE: Unable to locate package nosuch\n", Some("nosuch")),
            ("E: Package 'virtual' has no installation candidate\n", Some("virtual")),
            ("E: Version '9' for 'bash' was not found\n", Some("bash=9")),
            ("E: Unmet dependencies\n", None),
        ] {
            assert_eq!(unknown_package(text).as_deref(), name);
        }
    }
}
