//! Rules of the repository that a program can hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::shell;

/// Past this a file is usually about two things.
const MOST_LINES: usize = 800;

/// Files that programs write.
const GENERATED: &[&str] = &["Cargo.lock", "advisories.toml"];

/// Everything in the repository that breaks a rule, as `file:line: what`.
pub(super) fn findings(repository: &Path) -> Result<Vec<String>> {
    let private = Private::of_this_machine(repository);
    let mut findings = Vec::new();
    for name in files(repository)? {
        // A file that is listed may be deleted in the working tree, or be no text.
        let Ok(text) = fs::read_to_string(repository.join(&name)) else { continue };
        let base = name.rsplit('/').next().unwrap_or(&name);
        let generated = GENERATED.contains(&base);
        let lines = text.lines().count();
        if lines > MOST_LINES && !generated {
            findings.push(format!("{name}: {lines} lines, {MOST_LINES} are allowed"));
        }
        if base == "kiln.lock" {
            findings.push(format!("{name}: examples and tests ship no lock"));
        }
        for (number, line) in text.lines().enumerate() {
            let broken = broken_rule(line, &private).filter(|_| !generated);
            findings.extend(broken.map(|what| format!("{name}:{}: {what}", number + 1)));
        }
    }
    Ok(findings)
}

/// Texts that no line may hold, because they mean something on this machine only.
struct Private {
    /// Where the repository is.
    paths: Vec<String>,
    /// Mirrors and proxies.
    hosts: BTreeSet<String>,
}

impl Private {
    fn of_this_machine(repository: &Path) -> Self {
        let above = repository.parent().filter(|dir| dir.components().count() > 1);
        let paths = [Some(repository), above].into_iter().flatten();
        let paths = paths.map(|path| format!("{}/", path.display()));
        Self { paths: paths.filter(|path| path != "/tmp/").collect(), hosts: machine_hosts() }
    }
}

/// The rule that a line breaks. The words are put together here, so that this file keeps it.
fn broken_rule(line: &str, private: &Private) -> Option<String> {
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME")] {
        if line.contains(mark) {
            return Some(format!("{mark}: do it or open an issue"));
        }
    }
    if let Some(path) = private.paths.iter().find(|path| line.contains(path.as_str())) {
        return Some(format!("a path of this machine: {path}"));
    }
    let host = private.hosts.iter().find(|host| line.contains(host.as_str()));
    host.map(|_| "the address of a mirror that this machine is set up with".to_owned())
}

/// Tracked files and new ones that are not ignored.
fn files(repository: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.arg("-C").arg(repository);
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = shell::read(&mut git)?;
    let names: BTreeSet<&str> = listed.split('\0').filter(|name| !name.is_empty()).collect();
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Hosts of the mirrors and proxies that this machine's package tools are set up with. Names that
/// the whole world uses are no secret of the machine.
fn machine_hosts() -> BTreeSet<String> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list"), PathBuf::from("/etc/pip.conf")];
    for dir in ["/etc/apt/sources.list.d", "/etc/apt/apt.conf.d"] {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        paths.extend(entries.map(|entry| entry.path()));
    }
    let own = [".cargo/config.toml", ".config/pip/pip.conf", ".pip/pip.conf", ".npmrc"];
    paths.extend(own.map(|name| home.join(name)));
    let texts = paths.iter().filter_map(|path| fs::read_to_string(path).ok());
    let public = ["debian.org", "crates.io", "pypi.org", "npmjs.org", "github.com"];
    texts
        .flat_map(|text| hosts_in(&text))
        .filter(|host| !public.iter().any(|public| host.ends_with(public)))
        .collect()
}

/// Hosts of all addresses in a text, without loopback and names without a dot.
fn hosts_in(text: &str) -> Vec<String> {
    let end = |c: char| c.is_whitespace() || "/\"';,)>".contains(c);
    let authorities = text.split("://").skip(1).filter_map(|rest| rest.split(end).next());
    let hosts = authorities.filter_map(|all| all.rsplit('@').next()?.split(':').next());
    let real = |host: &&str| host.contains('.') && !host.starts_with("127.");
    hosts.filter(real).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_rules() {
        let findings = findings(shell::repository()).unwrap();
        assert!(findings.is_empty(), "{findings:#?}");
    }

    #[test]
    fn lines_that_break_a_rule_are_found() {
        let private = Private {
            paths: vec!["/src/kiln/".to_owned()],
            hosts: BTreeSet::from(["mirror.corp.example".to_owned()]),
        };
        for (line, broken) in [
            (concat!("// TO", "DO later"), true),
            ("let p = \"/src/kiln/x\";", true),
            ("let p = \"/src/other/x\";", false),
            ("see http://mirror.corp.example/debian", true),
            ("see http://localhost:8080/up", false),
        ] {
            assert_eq!(broken_rule(line, &private).is_some(), broken, "{line}");
        }
    }

    #[test]
    fn hosts_are_taken_out_of_configuration() {
        let text = "URIs: http://user:pw@a.example/debian\nproxy = https://b.example:3128;\nhttp://localhost/";
        assert_eq!(hosts_in(text), ["a.example", "b.example"]);
    }
}
