//! buildah, private to whoever starts it: images and state in a [`Cell`], no configuration of the
//! machine's, no network.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cell::{Cell, Keep};
use crate::call::Call;

/// How buildah keeps layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Overlay mounts: the quick way.
    Overlay,
    /// Whole copies: works everywhere.
    Vfs,
}

/// A storage of its own.
#[derive(Debug)]
pub struct Buildah {
    cell: Cell,
    driver: Driver,
}

impl Buildah {
    /// Makes the storage.
    ///
    /// # Errors
    /// If there is no place for it, or buildah does not run.
    pub fn start(driver: Driver, keep: Keep) -> Result<Self> {
        let cell = Cell::start("kiln-buildah-", keep, "exec sleep infinity\n")?;
        let buildah = Self { cell, driver };
        buildah.version().context("buildah does not run")?;
        Ok(buildah)
    }

    /// Where it runs.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// A path in the storage's folder, which goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.cell.path(name)
    }

    /// The program's version.
    ///
    /// # Errors
    /// If it does not run.
    pub fn version(&self) -> Result<String> {
        let output = self.buildah(&["--version"]).run_ok()?;
        Ok(output.stdout.split_whitespace().nth(2).unwrap_or("?").to_owned())
    }

    /// A call of buildah. Steps run in a chroot: the isolation that needs no OCI runtime.
    pub fn buildah(&self, args: &[&str]) -> Call {
        let driver = match self.driver {
            Driver::Overlay => "overlay",
            Driver::Vfs => "vfs",
        };
        self.cell
            .call("buildah")
            .arg("--root")
            .arg(self.path("data/root"))
            .arg("--runroot")
            .arg(self.path("data/runroot"))
            .args(["--storage-driver", driver])
            .args(args)
            .env("BUILDAH_ISOLATION", "chroot")
            .env("HOME", self.cell.folder())
            .env("TMPDIR", self.cell.folder())
            .env_remove("CONTAINERS_STORAGE_CONF")
            .env_remove("XDG_RUNTIME_DIR")
    }

    /// Makes an image of a tar archive; `config` are arguments of `buildah config`.
    ///
    /// # Errors
    /// If buildah refuses it.
    pub fn import(&self, tar: &Path, name: &str, config: &[String]) -> Result<()> {
        let made = self.buildah(&["from", "scratch"]).run_ok()?;
        let container = made.stdout.trim();
        self.buildah(&["add", "--quiet", container]).arg(tar).arg("/").run_ok()?;
        self.buildah(&["config"]).args(config).arg(container).run_ok()?;
        self.buildah(&["commit", "--quiet", "--rm", container, name])
            .run_ok()
            .context("importing an image")?;
        Ok(())
    }

    /// Writes an image with its layers, in the form that `docker save` has.
    ///
    /// # Errors
    /// If buildah refuses it.
    pub fn save(&self, image: &str, tar: &Path) -> Result<()> {
        let target = format!("docker-archive:{}", tar.display());
        self.buildah(&["push", "--quiet", image, &target]).run_ok()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_in_a_storage_of_its_own() {
        if super::super::lacks(&["buildah"]) {
            return;
        }
        let buildah = Buildah::start(Driver::Vfs, Keep::InMemory).unwrap();
        let folder = buildah.cell().folder().to_owned();
        let tar = buildah.path("a.tar");
        Call::new("tar").args(["-C", "/etc", "-cf"]).arg(&tar).arg("hostname").run_ok().unwrap();
        buildah.import(&tar, "a", &["--env".to_owned(), "A=b".to_owned()]).unwrap();
        buildah.save("a", &buildah.path("saved.tar")).unwrap();
        let listed = Call::new("tar").arg("-tf").arg(buildah.path("saved.tar")).run_ok().unwrap();
        assert!(listed.stdout.contains("manifest.json"), "{listed}");
        drop(buildah);
        assert!(!folder.exists());
    }
}
