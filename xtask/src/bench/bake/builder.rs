//! Those who build an image of a context, as a user calls them from a shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use kiln_testkit::peers::{self, Engine, Keep, Network, buildah::Driver};
use kiln_testkit::{Call, leftovers};

use crate::bench::peer::PATIENCE;
use crate::shell;

/// Somebody who builds. Each has an image or a base `busybox` with the same program in it.
pub(super) trait Builder {
    /// For the table.
    fn name(&self) -> &'static str;

    /// Program and version.
    fn version(&self) -> Result<String>;

    /// The command that builds what is in a folder.
    fn build(&self, context: &Path) -> Call;

    /// Where its images are.
    fn storage(&self) -> PathBuf;

    /// The process that builds, if it is one that stays.
    ///
    /// # Errors
    /// It is not there.
    fn daemon(&self) -> Result<Option<u32>>;
}

/// Kiln, on a root of its own; an agent is there from the first command on, as for users.
pub(super) struct Kiln {
    binary: PathBuf,
    root: tempfile::TempDir,
}

impl Kiln {
    pub(super) fn start(binary: &Path) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("kiln-bench-").tempdir()?;
        Ok(Self { binary: binary.to_owned(), root })
    }
}

impl Builder for Kiln {
    fn name(&self) -> &'static str {
        "Kiln"
    }

    fn version(&self) -> Result<String> {
        let version = Call::new(&self.binary).arg("--version").run_ok()?.stdout;
        let mut git = Command::new("git");
        git.current_dir(shell::repository()).args(["describe", "--always", "--dirty"]);
        let commit = shell::read(&mut git).unwrap_or_else(|_| "no commit".to_owned());
        Ok(format!("{} ({})", version.trim(), commit.trim()))
    }

    fn build(&self, context: &Path) -> Call {
        let call = Call::new(&self.binary).arg("--root").arg(self.root.path()).arg("bake");
        call.dir(context.parent().unwrap_or(context)).patience(PATIENCE)
    }

    fn storage(&self) -> PathBuf {
        self.root.path().to_owned()
    }

    fn daemon(&self) -> Result<Option<u32>> {
        daemon(self.root.path(), "agent").map(Some)
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        let call = Call::new(&self.binary).arg("--root").arg(self.root.path()).arg("shutdown");
        if let Err(error) = call.patience(PATIENCE).run_ok().context("ending the bench's Kiln") {
            eprintln!("warning: {error:#}");
        }
    }
}

/// `docker build` with BuildKit, in Docker Engine. No network: that spares it a bridge for each
/// step.
pub(super) struct BuildKit {
    engine: Engine,
}

impl BuildKit {
    pub(super) fn start() -> Result<Self> {
        let engine = Engine::start(Network::None, Keep::OnDisk)?;
        engine.import_busybox()?;
        Ok(Self { engine })
    }
}

impl Builder for BuildKit {
    fn name(&self) -> &'static str {
        "BuildKit"
    }

    fn version(&self) -> Result<String> {
        Ok(format!("BuildKit in Docker Engine {}", self.engine.version()?))
    }

    fn build(&self, context: &Path) -> Call {
        let args = ["build", "--quiet", "--network", "none", "--tag", "built"];
        self.engine.docker(&args).arg(context).patience(PATIENCE)
    }

    fn storage(&self) -> PathBuf {
        self.engine.path("data")
    }

    fn daemon(&self) -> Result<Option<u32>> {
        daemon(&self.engine.path("data"), "dockerd").map(Some)
    }
}

/// `buildah build` with its cache of layers, on overlay mounts, steps in a chroot: its quickest.
pub(super) struct Buildah {
    buildah: peers::Buildah,
}

impl Buildah {
    pub(super) fn start() -> Result<Self> {
        let buildah = peers::Buildah::start(Driver::Overlay, Keep::OnDisk)?;
        let dir = buildah.path("busybox");
        fs::create_dir(&dir)?;
        let package = Call::new("apt-get").args(["download", "busybox-static"]).dir(&dir);
        package.run_ok().context("busybox-static cannot be downloaded")?;
        let script = "dpkg-deb -x busybox-static_*.deb . && tar -cf busybox.tar bin/busybox";
        Call::new("/bin/sh").args(["-c", script]).dir(&dir).run_ok()?;
        buildah.import(&dir.join("busybox.tar"), "busybox", &[])?;
        Ok(Self { buildah })
    }
}

impl Builder for Buildah {
    fn name(&self) -> &'static str {
        "buildah"
    }

    fn version(&self) -> Result<String> {
        Ok(format!("buildah {}", self.buildah.version()?))
    }

    fn build(&self, context: &Path) -> Call {
        let args = ["build", "--quiet", "--layers", "--pull-never", "--tag", "built"];
        self.buildah.buildah(&args).arg(context).patience(PATIENCE)
    }

    fn storage(&self) -> PathBuf {
        self.buildah.path("data")
    }

    fn daemon(&self) -> Result<Option<u32>> {
        Ok(None)
    }
}

/// The process that has `folder` and `word` among its arguments.
fn daemon(folder: &Path, word: &str) -> Result<u32> {
    let found = leftovers::processes(folder, None).into_iter().find(|process| {
        let names = |name: &str| process.command.split(' ').any(|part| part == name);
        names(word) && names(&folder.to_string_lossy())
    });
    Ok(found.with_context(|| format!("no `{word}` runs on {}", folder.display()))?.pid)
}
