//! A base of some 150 packages, beside mmdebstrap, both from the same package files on this disk.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kiln_testkit::peers::{Cell, Keep};
use kiln_testkit::{Call, Project};

use crate::bench::peer::PATIENCE;
use crate::bench::report::Row;
use crate::bench::works::Unit;

/// A base takes long; more rounds say little more.
pub(super) const MOST_ROUNDS: usize = 3;

/// Names and aims, in milliseconds.
pub(super) const ROWS: &[(&str, f64)] = &[
    ("base: from .deb files", 11_000.0),
    ("base: with unpacked packages in the store", 7_000.0),
    ("base: the next one, with one package more", 7_000.0),
];

/// What is asked for; with what they need these are some 150 packages.
const PACKAGES: &[&str] =
    &["ca-certificates", "curl", "git", "nginx", "postgresql-15", "python3", "redis-server"];

/// What the next base has besides.
const MORE: &str = "less";

/// A package file in a store.
struct Deb {
    /// Its name at a mirror.
    file: String,
    sha256: String,
}

/// Returns mmdebstrap's version, and rows of four columns: Kiln, two builders that have no such
/// thing, mmdebstrap.
pub(super) fn measure(
    kiln: &Path,
    rounds: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<(String, Vec<Row>)> {
    println!("measuring: a base ({rounds} rounds)");
    let cell = Cell::start("kiln-bench-base-", Keep::OnDisk, "exec sleep infinity\n")?;
    let compose = format!(
        "name: base\nservices:\n  app: {{ image: all, command: [sh] }}\n  \
         next: {{ image: more, command: [sh] }}\n\
         x-kiln:\n  bases:\n    all: {{ debian: bookworm, packages: [{0}] }}\n    \
         more: {{ debian: bookworm, packages: [{0}, {MORE}] }}\n",
        PACKAGES.join(", ")
    );
    let project = Project::new(cell.path("project"), &compose);
    // The one bake that may ask a mirror; it writes the lock, and its store has the package files.
    let first = Root { binary: kiln, dir: cell.path("first") };
    for service in ["app", "next"] {
        first.bake(&project, service)?;
    }
    first.shutdown()?;
    let debs = locked(&project.read("kiln.lock"));
    println!("  {} packages", debs.len());
    let repository = cell.path("repository");
    write_repository(&first, &debs, &repository)?;

    let [mut unpacking, mut unpacked, mut next] = [const { Vec::new() }; 3];
    let mut theirs = Vec::new();
    let mut is_able = true;
    for round in 0..rounds {
        let root = Root { binary: kiln, dir: cell.path(&format!("round{round}")) };
        root.take_packages(&first, &debs)?;
        rustix::fs::sync();
        unpacking.push(root.bake(&project, "app")?);
        root.shutdown()?;
        root.forget_images()?;
        rustix::fs::sync();
        unpacked.push(root.bake(&project, "app")?);
        root.shutdown()?;
        rustix::fs::sync();
        next.push(root.bake(&project, "next")?);
        root.shutdown()?;
        fs::remove_dir_all(&root.dir)?;
        if is_able {
            match mmdebstrap(&cell, &repository) {
                Ok(milliseconds) => theirs.push(milliseconds),
                Err(error) => {
                    println!("  mmdebstrap failed, its column stays empty: {error:#}");
                    is_able = false;
                }
            }
        }
    }
    let columns = |kiln: &[f64]| vec![kiln.to_vec(), Vec::new(), Vec::new(), theirs.clone()];
    let rows = ROWS.iter().zip([&unpacking, &unpacked, &next]);
    let rows = rows.filter(|((name, _), _)| wanted(name)).map(|((name, aim), values)| {
        Row::new(name, Unit::Milliseconds, Some(*aim), columns(values))
    });
    let version = cell.call("mmdebstrap").arg("--version").run_ok()?.stdout;
    Ok((format!("{} ({} packages, {rounds} rounds)", version.trim(), debs.len()), rows.collect()))
}

/// A root of Kiln's without an agent between the commands.
struct Root<'a> {
    binary: &'a Path,
    dir: PathBuf,
}

impl Root<'_> {
    fn call(&self, verb: &str) -> Call {
        Call::new(self.binary).arg("--root").arg(&self.dir).arg(verb).patience(5 * PATIENCE)
    }

    /// Milliseconds of the whole command, agent's start included.
    fn bake(&self, project: &Project, service: &str) -> Result<f64> {
        let output = self.call("bake").arg(service).dir(project.dir()).run_ok()?;
        Ok(output.took.as_secs_f64() * 1_000.0)
    }

    fn shutdown(&self) -> Result<()> {
        self.call("shutdown").run_ok().map(drop)
    }

    fn object(&self, sha256: &str) -> PathBuf {
        let (first, rest) = sha256.split_at(2);
        self.dir.join("objects").join(first).join(rest)
    }

    /// Begins with the package files of another root, and nothing else.
    fn take_packages(&self, other: &Root<'_>, debs: &[Deb]) -> Result<()> {
        for deb in debs {
            let target = self.object(&deb.sha256);
            fs::create_dir_all(target.parent().context("an object's folder")?)?;
            fs::copy(other.object(&deb.sha256), target)?;
        }
        fs::copy(other.dir.join("format"), self.dir.join("format"))?;
        Ok(())
    }

    /// Removes what is known of whole images; what is known of single packages stays. A package's
    /// tree has its control files in it, an image's tree has not.
    fn forget_images(&self) -> Result<()> {
        let mut forgotten = 0;
        for entry in fs::read_dir(self.dir.join("cache/steps"))? {
            let path = entry?.path();
            let result: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
            let tree = result["tree"].as_str().and_then(|text| text.strip_prefix("sha256:"));
            let listing = fs::read_to_string(self.object(tree.context("a step without a tree")?))?;
            if !listing.contains("\n./control type=dir ") {
                fs::remove_file(&path)?;
                forgotten += 1;
            }
        }
        if forgotten == 0 {
            bail!("no step result of the base was found in {}", self.dir.display());
        }
        Ok(())
    }
}

/// The packages of a lock: each is a line with `filename` and `sha256`.
fn locked(lock: &str) -> Vec<Deb> {
    let value = |line: &str, key: &str| {
        let rest = line.split_once(&format!("{key} = \""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let deb = |line: &str| {
        let name = value(line, "filename")?;
        let file = name.rsplit('/').next()?.to_owned();
        Some(Deb { file, sha256: value(line, "sha256")? })
    };
    let mut debs: Vec<Deb> = lock.lines().filter_map(deb).collect();
    debs.sort_by(|one, other| one.file.cmp(&other.file));
    debs.dedup_by(|one, other| one.file == other.file);
    debs
}

/// A repository of exactly these packages, as apt reads it.
fn write_repository(root: &Root<'_>, debs: &[Deb], dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    for deb in debs {
        fs::copy(root.object(&deb.sha256), dir.join(&deb.file))?;
    }
    let scan = Call::new("dpkg-scanpackages").args(["--multiversion", "."]).dir(dir);
    let index = scan.patience(PATIENCE).run_ok()?.stdout;
    fs::write(dir.join("Packages"), &index)?;
    let sum = Call::new("sha256sum").arg("Packages").dir(dir).run_ok()?.stdout;
    let sum = sum.split_whitespace().next().context("sha256sum says nothing")?;
    // mmdebstrap asks apt for the essential packages of this suite.
    let release = format!(
        "Suite: bookworm\nCodename: bookworm\nArchitectures: amd64\n\
         Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {sum} {} Packages\n",
        index.len()
    );
    Ok(fs::write(dir.join("Release"), release)?)
}

/// The same packages by mmdebstrap, into a directory: essential ones and those asked for.
fn mmdebstrap(cell: &Cell, repository: &Path) -> Result<f64> {
    let target = cell.path("tree");
    // Not `file:`, which the programs inside the tree would have to see.
    let source = format!("deb [trusted=yes] copy:{} ./", repository.display());
    // apt begins with the rights of another user, who cannot read the repository.
    let output = cell
        .call("mmdebstrap")
        .args(["--quiet", "--variant=essential", "--mode=root", "--format=directory"])
        .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--aptopt=APT::Sandbox::User \"root\"")
        .arg("bookworm")
        .arg(&target)
        .arg(source)
        .patience(5 * PATIENCE)
        .run_ok()?;
    fs::remove_dir_all(&target)?;
    Ok(output.took.as_secs_f64() * 1_000.0)
}
