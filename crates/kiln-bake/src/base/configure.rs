//! Configuration by the target's own dpkg: one step in the sandbox for the whole base.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use kiln_core::Tree;
use kiln_store::Store;

use super::accounts::{Accounts, Numbers, text_of};
use super::assemble::{Unpacked, assemble, put_file};
use super::dpkg_db;
use super::error::{BaseError, tail};
use super::lock::LockedBase;
use super::normalise::normalise;
use super::order::{self, Action};
use super::output::Output;
use super::progress::{Phase, Watch};
use super::unpack::unpack;
use crate::capture::Capture;
use crate::runner::{Around, StepRunner, StepSpec};

/// What the driver exits with when a preinst script added a diversion that the tree does not
/// follow yet.
const DIVERTED: i32 = 91;
/// How often diversions may lead to further diversions.
const ROUNDS: usize = 4;
/// Lines of the scripts' output that a message quotes.
const QUOTED: usize = 25;

/// Does what `$@` says: `--preinst NAME` and `--configure NAME…`, in turn. debconf looks into
/// `tmp.ci` for whose script it serves. Nothing is configured in a tree that does not follow the
/// diversions. Lines that begin with `@kiln` are for [`Output`].
const DRIVER: &str = r#"
arch=$KILN_ARCH
unset KILN_ARCH
changed=
preinst() (
  ln -sfn "kiln/$1" /var/lib/dpkg/tmp.ci
  export DPKG_MAINTSCRIPT_PACKAGE="${1%%:*}" DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1
  export DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_ARCH="$arch" DPKG_MAINTSCRIPT_DEBUG=0
  export DPKG_ADMINDIR=/var/lib/dpkg DPKG_ROOT=
  echo "@kiln preinst ${1%%:*}"
  /var/lib/dpkg/tmp.ci/preinst install </dev/null
)
while [ $# -gt 0 ]; do
  case $1 in
  --preinst)
    before=$(cat /var/lib/dpkg/diversions)
    preinst "$2" || {
      echo "@kiln failed preinst script of ${2%%:*}: exit status $?"
      exit 90
    }
    rm -f /var/lib/dpkg/tmp.ci
    [ "$(cat /var/lib/dpkg/diversions)" = "$before" ] || changed=yes
    shift 2
    ;;
  --configure)
    [ -z "$changed" ] || exit 91
    shift
    names=
    while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
      names="$names $1"
      shift
    done
    dpkg --force-unsafe-io --force-confdef --force-confold --configure $names </dev/null || exit
    ;;
  esac
done
"#;

/// A configured tree, and the diversions that it follows.
#[derive(Debug)]
pub(crate) struct Configured {
    pub(crate) tree: Tree,
    pub(crate) diversions: Vec<String>,
}

/// Unpacks and configures `base`, whose package files are in the store.
pub(crate) fn configure(
    store: &Store,
    name: &str,
    base: &LockedBase,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<Configured, BaseError> {
    let mut base = base.clone();
    let mut packages = unpack(store, name, &base, watch)?;
    let trees: Vec<_> = packages.iter().map(|package| package.tree.clone()).collect();
    let numbers = Numbers::new(store, &base, &trees)?;
    for _ in 0..ROUNDS {
        packages.iter_mut().for_each(|package| package.paths.clear());
        let mut tree = assemble(&base, &numbers, &mut packages)?;
        dpkg_db::write(store, &base, &packages, &mut tree)?;
        Accounts::place(store, &base, &mut tree)?;
        prepare(store, &base, &mut tree)?;
        match run(store, name, &base, &packages, &tree, runner, watch)? {
            Round::Done(tree) => {
                check_states(store, name, &base, &tree)?;
                let tree = normalise(store, tree)?;
                return Ok(Configured { tree, diversions: base.diversions });
            }
            Round::Diverted(found) => base.diversions = found,
        }
    }
    Err(BaseError::Script {
        base: name.to_owned(),
        what: "the preinst scripts add diversions without end".into(),
        log: base.diversions.join("\n"),
    })
}

enum Round {
    Done(Tree),
    Diverted(Vec<String>),
}

fn run(
    store: &Store,
    name: &str,
    base: &LockedBase,
    packages: &[Unpacked],
    tree: &Tree,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<Round, BaseError> {
    let digest = store.put_tree(tree)?;
    let lower = store.step_lower(&digest)?;
    let scratch = store.scratch_dir()?;
    let spec = StepSpec {
        lower: lower.clone(),
        upper_dir: scratch.path().to_owned(),
        argv: command_line(base, packages),
        env: environment(base),
        cwd: "/".into(),
        user: "0:0".into(),
        network: false,
        hostname: "kiln".into(),
        mounts: Vec::new(),
        stdin: Vec::new(),
        rootful: true,
        stop: Arc::default(),
        around: Around::default(),
    };
    let total = base.configure.len() as u64;
    watch.step(name, Phase::Configure, (0, total), "")?;
    let mut output = Output::default();
    let exit = runner
        .run(&spec, &mut |bytes| {
            for package in output.take(bytes) {
                // A wish to stop is honoured by the runner, and again below.
                let _ = watch.step(name, Phase::Configure, (output.configured, total), &package);
            }
        })
        .map_err(|what| BaseError::Sandbox { base: name.to_owned(), what })?;
    watch.check()?;
    if exit.signal.is_none() && exit.code == DIVERTED {
        let after = captured(store, name, tree, &spec.lower, scratch.path())?;
        let text = text_of(store, &after, b"var/lib/dpkg/diversions")?;
        let mut found = dpkg_db::read_diversions(&text);
        found.retain(|line| !is_late(packages, line));
        return Ok(Round::Diverted(found));
    }
    let log = output.finish();
    let what = match exit.signal {
        Some(signal) => Some(format!("configuration was killed by signal {signal}")),
        None if exit.code != 0 => Some(log.failure(exit.code)),
        None => log.betrayed(),
    };
    if let Some(what) = what {
        return Err(BaseError::Script { base: name.into(), what, log: tail(&log.text, QUOTED) });
    }
    for line in log.warnings() {
        watch.step(name, Phase::Warning, (total, total), &line)?;
    }
    watch.step(name, Phase::Capture, (0, 0), "")?;
    captured(store, name, tree, &spec.lower, scratch.path()).map(Round::Done)
}

/// Whether a diversion is of a package without a preinst script, so made by its postinst: dash
/// makes some, on behalf of packages that come later, and here none does.
fn is_late(packages: &[Unpacked], diversion: &str) -> bool {
    let by = diversion.rsplit(' ').next().unwrap_or_default();
    packages
        .iter()
        .any(|package| package.locked.name == by && package.tree.get(b"control/preinst").is_none())
}

fn captured(
    store: &Store,
    name: &str,
    tree: &Tree,
    lower: &kiln_store::Lower,
    upper: &Path,
) -> Result<Tree, BaseError> {
    let (mounted, parent, upper_dir) = (BTreeSet::new(), tree, upper);
    let capture = Capture { store, parent, lower, upper_dir, mounted: &mounted };
    capture
        .tree()
        .map_err(|error| BaseError::Capture { base: name.to_owned(), what: error.to_string() })
}

fn command_line(base: &LockedBase, packages: &[Unpacked]) -> Vec<String> {
    let mut argv = ["/bin/sh", "-c", DRIVER, "kiln"].map(str::to_owned).to_vec();
    for action in order::plan(base, packages) {
        match action {
            Action::Preinst(name) => argv.extend(["--preinst".to_owned(), name]),
            Action::Configure(names) => {
                argv.push("--configure".to_owned());
                argv.extend(names);
            }
        }
    }
    argv
}

/// Everything that scripts may ask the environment for has one answer.
fn environment(base: &LockedBase) -> Vec<String> {
    let mut env: Vec<String> = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "SHELL=/bin/sh",
        "TERM=dumb",
        "TZ=UTC",
        "LANG=C.UTF-8",
        "LC_ALL=C.UTF-8",
        "DEBIAN_FRONTEND=noninteractive",
        "DEBCONF_NONINTERACTIVE_SEEN=true",
        "DEBCONF_NOWARNINGS=yes",
        "DEBCONF_TERSE=yes",
        "UCF_FORCE_CONFFOLD=1",
        "SYSTEMD_OFFLINE=1",
        // Iteration over hashes would differ from run to run.
        "PERL_HASH_SEED=0",
        "PYTHONHASHSEED=0",
    ]
    .map(str::to_owned)
    .to_vec();
    env.push(format!("SOURCE_DATE_EPOCH={}", base.epoch_seconds()));
    env.push(format!("KILN_ARCH={}", base.arch));
    env
}

/// What keeps scripts from starting services and from making what must be made by an instance.
fn prepare(store: &Store, base: &LockedBase, tree: &mut Tree) -> Result<(), BaseError> {
    put_file(store, tree, b"usr/sbin/policy-rc.d", b"#!/bin/sh\nexit 101\n", 0o755)?;
    let names: BTreeSet<&str> = base.unpack.iter().map(|each| each.name.as_str()).collect();
    if names.contains("postgresql-common") {
        let text = b"# A cluster is made when an instance first starts, never baked.\n\
            create_main_cluster = false\n";
        put_file(store, tree, b"etc/postgresql-common/createcluster.conf", text, 0o644)?;
    }
    Ok(())
}

fn check_states(
    store: &Store,
    name: &str,
    base: &LockedBase,
    tree: &Tree,
) -> Result<(), BaseError> {
    let status = text_of(store, tree, b"var/lib/dpkg/status")?;
    let unfinished = dpkg_db::unfinished(&status, base);
    if unfinished.is_empty() {
        return Ok(());
    }
    Err(BaseError::Script {
        base: name.to_owned(),
        what: format!("dpkg ended well, yet {} packages are not installed:", unfinished.len()),
        log: unfinished.join("\n"),
    })
}
