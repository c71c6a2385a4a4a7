//! The real apt in a private root: it chooses, Kiln records.
//!
//! Each suite has one root below `<store root>/cache/apt/`: package lists, apt's own caches, an
//! empty dpkg status, and a configuration that holds only what [`super::sources`] lets through.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use kiln_core::Digest;
use kiln_core::compose::Base;

use super::answer;
use super::error::{BaseError, tail};
use super::lock::LockedPackage;
use super::process::{self, Output};
use super::progress::{Phase, Watch};
use super::sources::{self, HostApt, Source};

/// Package lists younger than this are used again unless an update is asked for.
const FRESH: Duration = Duration::from_secs(2 * 3600);

/// A private root of one suite, held by this process alone while the value lives.
#[derive(Debug)]
pub(crate) struct AptRoot {
    dir: PathBuf,
    suite: String,
    /// Where the suite's files come from.
    pub(crate) sources: Vec<Source>,
    arch: String,
    _lock: fs::File,
}

/// What apt chose for one base.
#[derive(Debug)]
pub(crate) struct Resolution {
    pub(crate) unpack: Vec<LockedPackage>,
    pub(crate) configure: Vec<String>,
}

/// Removes the roots below `store_root` that no lock was resolved in for `age` and that nobody is
/// in; with `dry_run` it only says how many. What apt had there it brings again.
///
/// # Errors
/// A folder cannot be read or removed.
pub fn collect(store_root: &Path, age: Duration, dry_run: bool) -> io::Result<usize> {
    let entries = match fs::read_dir(store_root.join("cache/apt")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut count = 0;
    for entry in entries {
        let dir = entry?.path();
        // Entering writes nothing that is there already; bringing lists does.
        let used = ["updated", "lock"].map(|name| fs::metadata(dir.join(name)));
        let mut used = used.into_iter().flatten().filter_map(|meta| meta.modified().ok());
        let young = |time: SystemTime| time.elapsed().is_ok_and(|idle| idle < age);
        if used.any(young) {
            continue;
        }
        if let Ok(lock) = fs::File::open(dir.join("lock"))
            && lock.try_lock().is_err()
        {
            continue;
        }
        count += 1;
        if !dry_run {
            // Out of the way at once: whoever comes now makes a new one.
            let aside = dir.with_file_name(".gone");
            kiln_store::mount::remove_tree(&aside)?;
            fs::rename(&dir, &aside)?;
            kiln_store::mount::remove_tree(&aside)?;
        }
    }
    Ok(count)
}

impl AptRoot {
    /// Makes or enters the root of `suite` below `cache`. `base` is for messages.
    pub(crate) fn enter(
        cache: &Path,
        host: &HostApt,
        base: &str,
        suite: &str,
    ) -> Result<Self, BaseError> {
        check_name(base, "suite", suite)?;
        let sources = host.of_suite(base, suite)?;
        let dir = cache.join(suite);
        let lock = loop {
            for below in ["state/lists/partial", "cache/archives/partial", "etc/parts", "etc/none"]
            {
                let path = dir.join(below);
                fs::create_dir_all(&path).map_err(BaseError::io(&path))?;
            }
            let path = dir.join("lock");
            let lock = exclusive(&path)?;
            // It may have been collected while we waited.
            let inode = lock.metadata().map_err(BaseError::io(&path))?.ino();
            if fs::metadata(&path).is_ok_and(|meta| meta.ino() == inode) {
                break lock;
            }
        };
        let (list, stanzas) = sources::as_files(&sources);
        write_if_changed(&dir.join("etc/sources.list"), &list)?;
        write_if_changed(&dir.join("etc/parts/kiln.sources"), &stanzas)?;
        write_if_changed(&dir.join("status"), "")?;
        write_if_changed(&dir.join("apt.conf"), &configuration(&dir, host))?;
        let sources = sources.into_iter().cloned().collect();
        let arch = host.arch.clone();
        Ok(Self { dir, suite: suite.to_owned(), sources, arch, _lock: lock })
    }

    /// Brings the package lists, unless they are fresh and not `forced`.
    pub(crate) fn update(
        &self,
        base: &str,
        forced: bool,
        watch: Watch<'_>,
    ) -> Result<(), BaseError> {
        let stamp = self.dir.join("updated");
        let (list, stanzas) =
            (self.dir.join("etc/sources.list"), self.dir.join("etc/parts/kiln.sources"));
        let mut of = fs::read(&list).map_err(BaseError::io(&list))?;
        of.extend(fs::read(&stanzas).map_err(BaseError::io(&stanzas))?);
        let mark = Digest::of(of).hex();
        let age = fs::metadata(&stamp).and_then(|data| data.modified()).ok();
        let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
        let same = fs::read_to_string(&stamp).is_ok_and(|text| text == mark);
        if !forced && same && age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        watch.step(&self.suite, Phase::Update, (0, 0), "")?;
        let output = self.apt_get(&["update", "-q", "-o", "APT::Update::Error-Mode=any"], watch)?;
        if !output.success {
            let found = tail(&answer::problems(&output.stderr), 6);
            return Err(BaseError::Apt {
                base: base.to_owned(),
                what: format!("`apt-get update` for the suite `{}`", self.suite),
                output: found,
            });
        }
        fs::write(&stamp, mark).map_err(BaseError::io(&stamp))
    }

    /// Lets apt choose the packages of `base`.
    pub(crate) fn resolve(
        &self,
        name: &str,
        base: &Base,
        watch: Watch<'_>,
    ) -> Result<Resolution, BaseError> {
        watch.step(name, Phase::Resolve, (0, 0), "")?;
        for package in &base.packages {
            check_name(name, "package", package)?;
        }
        if base.minimal {
            let output = self.ask(name, &["download", "--print-uris"], &base.packages, watch)?;
            let unpack = self.files(name, &output)?.into_values().collect();
            return Ok(Resolution { unpack, configure: Vec::new() });
        }
        // Without it apt satisfies init-system-helpers by `usrmerge`, which brings all of perl;
        // the trees here are merged from the start.
        let mut wanted = vec!["?essential".to_owned(), "usr-is-merged".to_owned()];
        wanted.extend(base.packages.iter().cloned());
        match self.install(name, &wanted, watch) {
            Err(BaseError::NoPackage { package, .. }) if package == "usr-is-merged" => {
                wanted.remove(1);
                self.install(name, &wanted, watch)
            }
            other => other,
        }
    }

    /// The two questions at once: which files, and in which order.
    fn install(
        &self,
        name: &str,
        wanted: &[String],
        watch: Watch<'_>,
    ) -> Result<Resolution, BaseError> {
        let (files, order) = std::thread::scope(|scope| {
            let order = scope.spawn(|| self.ask(name, &["install", "-qq", "-s"], wanted, watch));
            let files = self.ask(name, &["install", "-qq", "--print-uris"], wanted, watch);
            let order = order.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (files, order)
        });
        let mut files = self.files(name, &files?)?;
        let order = order?;
        let steps = |verb: &str| -> Vec<String> {
            let lines = order.lines().filter_map(|line| line.strip_prefix(verb));
            lines.filter_map(|rest| rest.split_whitespace().next()).map(answer::plain).collect()
        };
        let (unpack, configure) = (steps("Inst "), steps("Conf "));
        let missing = |package: &str| BaseError::Apt {
            base: name.to_owned(),
            what: "reading apt's answer".into(),
            output: format!("apt gives an order, but no file for `{package}`"),
        };
        let unpack: Vec<LockedPackage> = unpack
            .iter()
            .map(|package| files.remove(package).ok_or_else(|| missing(package)))
            .collect::<Result<_, _>>()?;
        Ok(Resolution { unpack, configure })
    }

    fn ask(
        &self,
        name: &str,
        verb: &[&str],
        wanted: &[String],
        watch: Watch<'_>,
    ) -> Result<String, BaseError> {
        let arguments: Vec<&str> =
            verb.iter().copied().chain(wanted.iter().map(String::as_str)).collect();
        let output = self.apt_get(&arguments, watch)?;
        if output.success {
            return Ok(output.stdout);
        }
        let said = format!("{}{}", output.stdout, output.stderr);
        if let Some(package) = answer::unknown_package(&said) {
            let suite = self.suite.clone();
            return Err(BaseError::NoPackage { base: name.to_owned(), package, suite });
        }
        Err(BaseError::Apt {
            base: name.to_owned(),
            what: format!("choosing packages from the suite `{}`", self.suite),
            output: tail(&said, 20),
        })
    }

    /// Lines `'URI' FILE SIZE SHA256:HEX` of `--print-uris`, by package.
    fn files(&self, name: &str, text: &str) -> Result<BTreeMap<String, LockedPackage>, BaseError> {
        let mut files = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with('\'')) {
            let package = answer::file(line, &self.sources).ok_or_else(|| BaseError::Apt {
                base: name.to_owned(),
                what: "reading apt's answer".into(),
                output: format!("no file of a package with a sha256: {line}"),
            })?;
            files.insert(package.name.clone(), package);
        }
        Ok(files)
    }

    /// Downloads each address to its file, checking its sha256. Says per address why it failed.
    pub(crate) fn download(
        &self,
        files: &[(String, PathBuf, Digest)],
        watch: Watch<'_>,
    ) -> Result<BTreeMap<String, String>, BaseError> {
        let mut command = self.command("/usr/lib/apt/apt-helper");
        command.arg("download-file");
        for (uri, path, digest) in files {
            command.arg(uri).arg(path).arg(format!("SHA256:{}", digest.hex()));
        }
        let output = process::run(command, watch)?;
        if output.success {
            return Ok(BTreeMap::new());
        }
        let mut reasons: BTreeMap<String, String> = BTreeMap::new();
        for line in output.stderr.lines() {
            let rest = line.strip_prefix("E: Failed to fetch ");
            if let Some((uri, reason)) = rest.and_then(|rest| rest.split_once("  ")) {
                reasons.insert(uri.to_owned(), reason.trim().to_owned());
            }
        }
        for (uri, path, _) in files {
            if !path.is_file() {
                let all = || tail(&answer::problems(&output.stderr), 3);
                reasons.entry(uri.clone()).or_insert_with(all);
            }
        }
        Ok(reasons)
    }

    /// Addresses at which a locked file may be, the likeliest first.
    pub(crate) fn addresses(&self, filename: &str) -> Vec<String> {
        let mut roots: Vec<(bool, &str)> = Vec::new();
        for source in &self.sources {
            let security = source.suite.contains("security") || source.suite.contains("/updates");
            let unlikely = security != filename.starts_with("pool/updates/");
            if !roots.iter().any(|(_, uri)| *uri == source.uri) {
                roots.push((unlikely, &source.uri));
            }
        }
        roots.sort_by_key(|(unlikely, _)| *unlikely);
        roots.into_iter().map(|(_, uri)| format!("{uri}{}", answer::quote(filename))).collect()
    }

    /// Native Debian architecture.
    pub(crate) fn arch(&self) -> &str {
        &self.arch
    }

    fn apt_get(&self, arguments: &[&str], watch: Watch<'_>) -> Result<Output, BaseError> {
        let mut command = self.command("apt-get");
        command.args(arguments);
        process::run(command, watch)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C");
        command.env_remove("LANGUAGE").current_dir(&self.dir);
        command
    }
}

/// `APT_CONFIG` is read before the host's own files, and sends apt past them.
fn configuration(dir: &Path, host: &HostApt) -> String {
    let at = |below: &str| dir.join(below).display().to_string();
    let mut text = String::new();
    let mut set = |key: &str, value: &str| text.push_str(&format!("{key} \"{value}\";\n"));
    set("Dir::State", &at("state"));
    set("Dir::State::status", &at("status"));
    set("Dir::Cache", &at("cache"));
    set("Dir::Etc", &at("etc"));
    set("Dir::Etc::main", &at("etc/none.conf"));
    set("Dir::Etc::parts", &at("etc/none"));
    set("Dir::Etc::preferences", &at("etc/none.pref"));
    set("Dir::Etc::preferencesparts", &at("etc/none"));
    set("Dir::Etc::sourcelist", &at("etc/sources.list"));
    set("Dir::Etc::sourceparts", &at("etc/parts"));
    set("Dir::Log", &at("log"));
    set("APT::Architecture", &host.arch);
    set("APT::Architectures", &host.arch);
    set("APT::Install-Recommends", "false");
    set("APT::Install-Suggests", "false");
    set("APT::Get::Assume-Yes", "true");
    set("APT::Get::AllowUnauthenticated", "false");
    // The root folder is closed to apt's own user.
    set("APT::Sandbox::User", "root");
    set("Acquire::ForceHash", "SHA256");
    set("Acquire::Languages", "none");
    set("Acquire::PDiffs", "false");
    set("Acquire::Retries", "1");
    set("Acquire::http::Timeout", "20");
    set("Acquire::https::Timeout", "20");
    // Else apt counts itself among the essential packages.
    set("pkgCacheGen::ForceEssential", ",");
    host.settings.iter().for_each(|line| text.extend([line, "\n"]));
    text
}

fn exclusive(path: &Path) -> Result<fs::File, BaseError> {
    let file = fs::File::create(path).map_err(BaseError::io(path))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| BaseError::io(path)(error.into()))?;
    Ok(file)
}

fn write_if_changed(path: &Path, text: &str) -> Result<(), BaseError> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(BaseError::io(path))
}

/// Names end up as arguments and paths: a trailing `-` would mean removal, a slash a release.
fn check_name(base: &str, kind: &'static str, name: &str) -> Result<(), BaseError> {
    let (plain, version) = name.split_once('=').unwrap_or((name, "1"));
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte);
    let good = plain.bytes().all(known)
        && plain.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !plain.ends_with('-')
        && version.bytes().all(|byte| known(byte) || b"~:".contains(&byte))
        && !version.is_empty()
        && (kind == "package" || plain == name);
    if good {
        Ok(())
    } else {
        Err(BaseError::BadName { base: base.to_owned(), kind, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_that_mean_something_else_to_apt() {
        for good in ["g++", "libstdc++6", "python3.11-minimal", "bash=5.2.15-2+b1"] {
            assert!(check_name("b", "package", good).is_ok(), "{good}");
        }
        for bad in ["", "-y", "bash-", "bash/sid", "?essential", "a b", "bash=", "Ä"] {
            assert!(check_name("b", "package", bad).is_err(), "{bad}");
        }
        assert!(check_name("b", "suite", "../x").is_err());
        assert!(check_name("b", "suite", "a=b").is_err());
    }
}
