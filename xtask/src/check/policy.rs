//! `deny.toml`: licences, bans, and advisories that do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::lock::Package;

#[derive(Debug, Deserialize)]
pub(super) struct Policy {
    licenses: Licences,
    bans: Bans,
    advisories: Advisories,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
    /// What a package says in a file only.
    #[serde(default)]
    clarify: Vec<Clarified>,
}

#[derive(Debug, Deserialize)]
struct Clarified {
    #[serde(rename = "crate")]
    name: String,
    expression: String,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
    single: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Advisories {
    ignore: Vec<Ignored>,
}

#[derive(Debug, Deserialize)]
struct Ignored {
    id: String,
    reason: String,
}

impl Policy {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// Packages whose licence leaves no allowed choice.
    pub(super) fn licences(&self, packages: &[Package]) -> Vec<String> {
        let judge = |package: &Package| {
            let Package { name, version, license, .. } = package;
            let known = self.licenses.clarify.iter().find(|known| known.name == *name);
            let license = license.as_ref().or(known.map(|known| &known.expression));
            let why = match license {
                None => "no licence is stated".to_owned(),
                Some(text) if self.allows(text) => return None,
                Some(text) => format!("licence {text} is not allowed"),
            };
            Some(format!("{name} {version}: {why} (deny.toml, licenses.allow)"))
        };
        packages.iter().filter_map(judge).collect()
    }

    /// Whether an SPDX expression can be satisfied with what is allowed.
    fn allows(&self, expression: &str) -> bool {
        // Lax: older packages write `MIT/Apache-2.0`.
        let parsed = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX);
        parsed.is_ok_and(|parsed| {
            parsed.evaluate(|wanted| {
                let wanted = wanted.to_string();
                self.licenses.allow.contains(&wanted)
            })
        })
    }

    /// Packages that must not be there, or not twice. Other duplicates are only printed.
    pub(super) fn bans(&self, packages: &[Package]) -> Vec<String> {
        let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for package in packages {
            versions.entry(&package.name).or_default().insert(package.version.to_string());
        }
        let mut findings: Vec<String> = self
            .bans
            .deny
            .iter()
            .filter(|ban| versions.contains_key(ban.name.as_str()))
            .map(|ban| format!("{} is banned: {}", ban.name, ban.reason))
            .collect();
        for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
            let text = format!("{name} is there in {} versions: {versions:?}", versions.len());
            if self.bans.single.iter().any(|single| single == name) {
                findings.push(format!("{text} (deny.toml, bans.single)"));
            } else {
                println!("note: {text}");
            }
        }
        findings
    }

    /// Why an advisory does not count here, if it does not.
    pub(super) fn ignores(&self, id: &str) -> Option<&str> {
        let found = self.advisories.ignore.iter().find(|ignored| ignored.id == id);
        found.map(|ignored| ignored.reason.as_str())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::check) fn policy() -> Policy {
        let text = r#"
            [licenses]
            allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
            [bans]
            deny = [{ crate = "openssl-sys", reason = "no OpenSSL" }]
            single = ["libc"]
            [advisories]
            ignore = [{ id = "RUSTSEC-2000-0001", reason = "not reachable" }]
        "#;
        Policy::parse(text).unwrap()
    }

    pub(in crate::check) fn package(name: &str, version: &str, license: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.parse().unwrap(),
            license: Some(license.to_owned()),
            source: Some("registry".to_owned()),
        }
    }

    #[test]
    fn a_licence_needs_one_allowed_choice() {
        let policy = policy();
        for (expression, allowed) in [
            ("MIT", true),
            ("MIT OR GPL-3.0-only", true),
            ("GPL-3.0-only", false),
            ("MIT AND GPL-3.0-only", false),
            ("MIT/Apache-2.0", true),
            ("(MIT OR ISC) AND Apache-2.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("nonsense", false),
        ] {
            assert_eq!(policy.allows(expression), allowed, "{expression}");
        }
        assert_eq!(policy.licences(&[package("a", "1.0.0", "AGPL-3.0-only")]).len(), 1);
    }

    #[test]
    fn bans_and_forbidden_duplicates_are_found() {
        let packages = [
            package("openssl-sys", "0.9.1", "MIT"),
            package("libc", "0.2.1", "MIT"),
            package("libc", "0.1.1", "MIT"),
            package("syn", "1.0.0", "MIT"),
            package("syn", "2.0.0", "MIT"),
        ];
        let findings = policy().bans(&packages);
        assert_eq!(findings.len(), 2, "{findings:?}");
    }
}
