//! Advisories of the RustSec database against the locked versions.
//!
//! In this order: a checkout that is named, a fresh clone, the repository's snapshot
//! `advisories.toml`. Which one it was, and of which day, is printed: an old answer is not passed
//! off as a new one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use semver::VersionReq;
use serde::{Deserialize, Serialize};

use super::lock::Package;
use super::policy::Policy;
use crate::shell;

const UPSTREAM: &str = "https://github.com/rustsec/advisory-db";
const SNAPSHOT: &str = "advisories.toml";

/// One advisory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Advisory {
    id: String,
    package: String,
    /// `unmaintained`, `unsound`, `notice`; none for a vulnerability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// Versions that are not affected: patched, or never were.
    #[serde(default)]
    fine: Vec<String>,
}

/// The front matter of a file of the database.
#[derive(Deserialize)]
struct File {
    advisory: Head,
    versions: Option<Versions>,
}

#[derive(Deserialize)]
struct Head {
    id: String,
    package: String,
    informational: Option<String>,
    withdrawn: Option<String>,
}

#[derive(Default, Deserialize)]
struct Versions {
    #[serde(default)]
    patched: Vec<String>,
    #[serde(default)]
    unaffected: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    date: String,
    advisory: Vec<Advisory>,
}

/// All advisories, and where they are from.
pub(super) struct Database {
    pub(super) source: String,
    advisories: Vec<Advisory>,
}

impl Database {
    /// Takes the best that can be had.
    pub(super) fn find(named: Option<&Path>) -> Result<Self> {
        if let Some(dir) = named {
            let advisories = read_checkout(dir)?;
            let date = checkout_date(dir);
            let source =
                format!("{} of RustSec as of {date} in {}", advisories.len(), dir.display());
            return Ok(Self { source, advisories });
        }
        let refused = match clone() {
            Ok(dir) => return Self::find(Some(&dir)),
            Err(error) => error,
        };
        let path = shell::repository().join(SNAPSHOT);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("NOT CHECKED: {refused:#}; and no {SNAPSHOT}"))?;
        let Snapshot { date, advisory } = toml::from_str(&text).context(SNAPSHOT)?;
        let source = format!(
            "{} of the snapshot of RustSec of {date}; LATER ONES ARE NOT CHECKED, for the \
             database could not be reached",
            advisory.len()
        );
        Ok(Self { source, advisories: advisory })
    }

    /// Advisories that hit. What only warns of missing care is printed.
    pub(super) fn findings(&self, packages: &[Package], policy: &Policy) -> Vec<String> {
        let mut findings = Vec::new();
        for package in packages.iter().filter(|package| package.source.is_some()) {
            let named = self.advisories.iter().filter(|advisory| advisory.package == package.name);
            for advisory in named.filter(|advisory| advisory.hits(package)) {
                let kind = advisory.kind.as_deref().unwrap_or("vulnerable");
                let (name, version, id) = (&package.name, &package.version, &advisory.id);
                let text = format!("{name} {version} is {kind}: {id}");
                match (policy.ignores(id), kind) {
                    (Some(reason), _) => println!("ignored: {text}: {reason}"),
                    (None, "unmaintained" | "notice") => println!("note: {text}"),
                    (None, _) => findings.push(text),
                }
            }
        }
        findings
    }
}

impl Advisory {
    fn hits(&self, package: &Package) -> bool {
        let fine = |text: &String| {
            VersionReq::parse(text).is_ok_and(|fine| fine.matches(&package.version))
        };
        !self.fine.iter().any(fine)
    }

    /// Reads one file of the database; `None` if it was withdrawn.
    fn parse(text: &str) -> Result<Option<Self>> {
        let front = text.split("```toml").nth(1).and_then(|rest| rest.split("```").next());
        let front = front.context("no front matter")?;
        let File { advisory, versions } = toml::from_str(front)?;
        if advisory.withdrawn.is_some() {
            return Ok(None);
        }
        let Versions { mut patched, unaffected } = versions.unwrap_or_default();
        patched.extend(unaffected);
        let Head { id, package, informational, .. } = advisory;
        Ok(Some(Self { id, package, kind: informational, fine: patched }))
    }
}

/// Writes the snapshot from a checkout.
pub(super) fn update_snapshot(dir: &Path) -> Result<()> {
    let snapshot = Snapshot { date: checkout_date(dir), advisory: read_checkout(dir)? };
    let mut text = String::from(
        "# The RustSec advisory database (CC0-1.0; imported advisories CC-BY-4.0): what is affected,\n\
         # without the prose. For checks where the database cannot be reached. Written by\n\
         # `cargo xtask check --advisory-db DIR --update-snapshot`.\n",
    );
    text += &format!("date = {:?}\n", snapshot.date);
    text += "advisory = [\n";
    for Advisory { id, package, kind, fine } in &snapshot.advisory {
        let kind = kind.as_ref().map_or(String::new(), |kind| format!(", kind = {kind:?}"));
        text += &format!("  {{ id = {id:?}, package = {package:?}{kind}, fine = {fine:?} }},\n");
    }
    text += "]\n";
    toml::from_str::<Snapshot>(&text).context("the snapshot cannot be read back")?;
    let path = shell::repository().join(SNAPSHOT);
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    println!("{}: {} advisories", path.display(), snapshot.advisory.len());
    Ok(())
}

fn read_checkout(dir: &Path) -> Result<Vec<Advisory>> {
    let mut advisories = Vec::new();
    let crates = dir.join("crates");
    for package in fs::read_dir(&crates).with_context(|| crates.display().to_string())? {
        for file in fs::read_dir(package?.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path)?;
                let read = Advisory::parse(&text).with_context(|| path.display().to_string())?;
                advisories.extend(read);
            }
        }
    }
    if advisories.is_empty() {
        bail!("{} holds no advisories", dir.display());
    }
    advisories.sort_by(|a, b| (&a.package, &a.id).cmp(&(&b.package, &b.id)));
    Ok(advisories)
}

fn checkout_date(dir: &Path) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(dir).args(["log", "-1", "--format=%cs"]);
    shell::read(&mut git)
        .map_or_else(|_| "an unknown day".to_owned(), |date| date.trim().to_owned())
}

/// A fresh clone in the target directory.
fn clone() -> Result<PathBuf> {
    let dir = shell::repository().join("target/advisory-db");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let mut git = Command::new("timeout");
    git.args(["60", "git", "clone", "--quiet", "--depth", "1", UPSTREAM]).arg(&dir);
    git.env("GIT_TERMINAL_PROMPT", "0");
    shell::read(&mut git).context("the advisory database cannot be cloned")?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::super::policy::tests::{package, policy};
    use super::*;

    const FILE: &str = r#"```toml
[advisory]
id = "RUSTSEC-2023-0022"
package = "openssl"
date = "2023-03-24"

[versions]
patched = [">= 0.10.48"]
unaffected = ["< 0.9.7"]
```

# A title
"#;

    #[test]
    fn versions_in_between_are_hit() {
        let advisory = Advisory::parse(FILE).unwrap().unwrap();
        for (version, hit) in
            [("0.9.6", false), ("0.9.7", true), ("0.10.47", true), ("0.10.48", false)]
        {
            assert_eq!(advisory.hits(&package("openssl", version, "MIT")), hit, "{version}");
        }
    }

    #[test]
    fn kinds_and_exceptions_are_kept_apart() {
        let advisory = |id: &str, kind: Option<&str>| Advisory {
            id: id.to_owned(),
            package: "a".to_owned(),
            kind: kind.map(str::to_owned),
            fine: vec![">= 2.0.0".to_owned()],
        };
        let database = Database {
            source: String::new(),
            advisories: vec![
                advisory("RUSTSEC-2000-0001", None), // ignored by the policy
                advisory("RUSTSEC-2000-0002", None),
                advisory("RUSTSEC-2000-0003", Some("unsound")),
                advisory("RUSTSEC-2000-0004", Some("unmaintained")),
            ],
        };
        let hit = database.findings(&[package("a", "1.0.0", "MIT")], &policy());
        assert_eq!(hit.len(), 2, "{hit:?}");
        assert!(database.findings(&[package("a", "2.0.0", "MIT")], &policy()).is_empty());
    }

    #[test]
    fn a_withdrawn_advisory_does_not_count() {
        let withdrawn = FILE.replace("date =", "withdrawn = \"2023-04-01\"\ndate =");
        assert_eq!(Advisory::parse(&withdrawn).unwrap(), None);
        assert!(Advisory::parse("no front matter").is_err());
    }

    #[test]
    fn the_snapshot_can_be_read() {
        let text = fs::read_to_string(shell::repository().join(SNAPSHOT)).unwrap();
        let snapshot: Snapshot = toml::from_str(&text).unwrap();
        assert!(snapshot.advisory.len() > 1_000, "{}", snapshot.advisory.len());
        for advisory in &snapshot.advisory {
            for fine in &advisory.fine {
                assert!(VersionReq::parse(fine).is_ok(), "{}: {fine}", advisory.id);
            }
        }
    }
}
