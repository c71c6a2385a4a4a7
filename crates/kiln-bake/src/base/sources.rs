//! What counts of the host's apt configuration: sources, keys, proxy and authentication.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::control::{self, Paragraph};
use super::error::BaseError;

/// The host's apt, as far as it counts.
#[derive(Debug, Clone)]
pub(crate) struct HostApt {
    /// Native Debian architecture.
    pub(crate) arch: String,
    /// Lines of apt.conf(5) about transport and keys.
    pub(crate) settings: Vec<String>,
    /// Every source entry of a binary archive, each with one suite.
    pub(crate) sources: Vec<Source>,
}

/// One archive: an address and a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Root of the archive, ended by a slash.
    pub(crate) uri: String,
    /// Suite as written.
    pub(crate) suite: String,
    /// How it stands in a private root.
    text: SourceText,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SourceText {
    /// One line of sources.list.
    Line(String),
    /// A paragraph of a `.sources` file.
    Stanza(String),
}

impl Source {
    /// The source that a line of sources.list names.
    #[cfg(test)]
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let mut sources = Vec::new();
        parse_list(line, &mut sources);
        sources.pop()
    }

    /// Whether the source is the suite's own or an addition to it: `bookworm`,
    /// `bookworm-security`, `bookworm/updates`, `cloud-sdk-bookworm`.
    fn belongs_to(&self, suite: &str) -> bool {
        let own = self.suite.trim_end_matches('/');
        own == suite
            || own.strip_prefix(suite).is_some_and(|rest| rest.starts_with(['-', '/']))
            || own.strip_suffix(suite).is_some_and(|rest| rest.ends_with('-'))
    }
}

/// How the host's apt is asked, when it has to be; tests give their own.
pub(crate) type AskHost<'a> = &'a (dyn Fn() -> Result<HostApt, BaseError> + Sync);

impl HostApt {
    /// Asks the host's apt.
    ///
    /// # Errors
    /// [`BaseError::NoApt`] when `apt-config` is missing.
    pub(crate) fn read() -> Result<Self, BaseError> {
        let paths = apt_config(&[
            "shell",
            "ARCH",
            "APT::Architecture",
            "LIST",
            "Dir::Etc::sourcelist/f",
            "PARTS",
            "Dir::Etc::sourceparts/d",
            "NETRC",
            "Dir::Etc::netrc/f",
            "NETRCPARTS",
            "Dir::Etc::netrcparts/d",
            "TRUSTED",
            "Dir::Etc::trusted/f",
            "TRUSTEDPARTS",
            "Dir::Etc::trustedparts/d",
        ])?;
        let value = |name: &str| {
            let line = paths.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|quoted| quoted.trim_matches('\'').to_owned()).unwrap_or_default()
        };
        let mut settings: Vec<String> = [
            ("Dir::Etc::netrc", "NETRC"),
            ("Dir::Etc::netrcparts", "NETRCPARTS"),
            ("Dir::Etc::trusted", "TRUSTED"),
            ("Dir::Etc::trustedparts", "TRUSTEDPARTS"),
        ]
        .into_iter()
        .map(|(key, name)| format!("{key} \"{}\";", value(name)))
        .collect();
        settings
            .extend(apt_config(&["dump"])?.lines().filter(|line| counts(line)).map(str::to_owned));
        let sources = read_sources(Path::new(&value("LIST")), Path::new(&value("PARTS")))?;
        Ok(Self { arch: value("ARCH"), settings, sources })
    }

    /// The sources of `suite`.
    ///
    /// # Errors
    /// [`BaseError::NoSuite`] lists the suites that are there.
    pub(crate) fn of_suite(&self, base: &str, suite: &str) -> Result<Vec<&Source>, BaseError> {
        if self.sources.iter().any(|source| source.suite.trim_end_matches('/') == suite) {
            return Ok(self.sources.iter().filter(|source| source.belongs_to(suite)).collect());
        }
        let mut found: Vec<String> =
            self.sources.iter().map(|source| source.suite.clone()).collect();
        found.sort();
        found.dedup();
        Err(BaseError::NoSuite { base: base.to_owned(), suite: suite.to_owned(), found })
    }
}

/// The text of `sources.list` and of a `.sources` file that hold `sources`.
pub(crate) fn as_files(sources: &[&Source]) -> (String, String) {
    let (mut list, mut stanzas) = (String::new(), String::new());
    for source in sources {
        match &source.text {
            SourceText::Line(line) => list.extend([line, "\n"]),
            SourceText::Stanza(stanza) => stanzas.extend([stanza.as_str(), "\n"]),
        }
    }
    (list, stanzas)
}

/// Transport, authentication, and whether the dates of an archive are believed.
fn counts(line: &str) -> bool {
    let key = line.split(' ').next().unwrap_or_default().to_ascii_lowercase();
    ["http", "https", "ftp", "ssh", "mirror", "tor", "tor+http", "tor+https", "socks5h"]
        .iter()
        .any(|method| key.starts_with(&format!("acquire::{method}::")))
        || ["acquire::check-valid-until", "acquire::check-date", "acquire::retries"]
            .contains(&key.as_str())
}

fn apt_config(arguments: &[&str]) -> Result<String, BaseError> {
    let output = Command::new("apt-config")
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| BaseError::NoApt { program: "apt-config".into(), source })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn read_sources(list: &Path, parts: &Path) -> Result<Vec<Source>, BaseError> {
    let mut sources = Vec::new();
    if list.is_file() {
        let text = std::fs::read_to_string(list).map_err(BaseError::io(list))?;
        parse_list(&text, &mut sources);
    }
    let entries = std::fs::read_dir(parts).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let kind = file.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        if kind == "list" || kind == "sources" {
            let text = std::fs::read_to_string(&file).map_err(BaseError::io(&file))?;
            if kind == "list" {
                parse_list(&text, &mut sources);
            } else {
                control::parse(&text).iter().for_each(|each| parse_stanza(each, &mut sources));
            }
        }
    }
    Ok(sources)
}

/// Lines `deb [OPTIONS] URI SUITE COMPONENT…`.
fn parse_list(text: &str, sources: &mut Vec<Source>) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next())
            && !uri.starts_with("cdrom:")
        {
            let text = SourceText::Line(line.to_owned());
            sources.push(Source { uri: with_slash(uri), suite: suite.to_owned(), text });
        }
    }
}

fn parse_stanza(stanza: &Paragraph, sources: &mut Vec<Source>) {
    let off = ["no", "false", "without", "off", "disable"];
    let enabled = stanza.get("Enabled").unwrap_or("yes").to_ascii_lowercase();
    if off.contains(&enabled.as_str()) || !stanza.words("Types").contains(&"deb") {
        return;
    }
    for uri in stanza.words("URIs").into_iter().filter(|uri| !uri.starts_with("cdrom:")) {
        for suite in stanza.words("Suites") {
            let mut own = stanza.clone();
            own.set("Types", "deb".into());
            own.set("URIs", uri.to_owned());
            own.set("Suites", suite.to_owned());
            let text = SourceText::Stanza(own.text());
            sources.push(Source { uri: with_slash(uri), suite: suite.to_owned(), text });
        }
    }
}

fn with_slash(uri: &str) -> String {
    format!("{}/", uri.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> HostApt {
        let mut sources = Vec::new();
        parse_list(
            "# deb http://no/ bookworm main\n\
             deb [arch=amd64 signed-by=/k] http://one/debian bookworm main # why\n\
             deb-src http://one/debian bookworm main\n\
             deb http://two/ trixie main\n\
             deb cdrom:[x]/ bookworm main\n",
            &mut sources,
        );
        let text = "Types: deb deb-src\nURIs: http://three/debian/ http://four\n\
             Suites: bookworm bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN\n .\n x\n\n\
             Types: deb\nURIs: http://off\nSuites: bookworm\nEnabled: no\n";
        control::parse(text).iter().for_each(|each| parse_stanza(each, &mut sources));
        HostApt { arch: "amd64".into(), settings: Vec::new(), sources }
    }

    #[test]
    fn takes_the_sources_of_a_suite_and_no_others() {
        let host = sample();
        let found = host.of_suite("b", "bookworm").unwrap();
        let uris: Vec<(&str, &str)> =
            found.iter().map(|each| (each.uri.as_str(), each.suite.as_str())).collect();
        assert_eq!(
            uris,
            [
                ("http://one/debian/", "bookworm"),
                ("http://three/debian/", "bookworm"),
                ("http://three/debian/", "bookworm-updates"),
                ("http://four/", "bookworm"),
                ("http://four/", "bookworm-updates"),
            ]
        );
        let (list, stanzas) = as_files(&found);
        assert_eq!(list, "deb [arch=amd64 signed-by=/k] http://one/debian bookworm main\n");
        assert!(stanzas.contains("Signed-By:\n -----BEGIN\n .\n x\n"), "{stanzas}");
        assert_eq!(control::parse(&stanzas).len(), 4);
    }

    #[test]
    fn missing_suite_lists_what_is_there() {
        let error = sample().of_suite("web", "sid").unwrap_err().to_string();
        assert!(
            error.contains("base `web`") && error.contains("bookworm, bookworm-updates, trixie")
        );
    }

    #[test]
    fn only_transport_settings_count() {
        assert!(counts("Acquire::http::Proxy \"http://p:3128\";"));
        assert!(counts("Acquire::Check-Valid-Until \"false\";"));
        assert!(!counts("APT::Install-Recommends \"true\";"));
        assert!(!counts("Acquire::Languages:: \"none\";"));
        assert!(!counts("DPkg::Post-Invoke:: \"x\";"));
    }
}
