//! Docker Engine, private to whoever starts it.
//!
//! It runs in a [`Cell`] on data and state folders of its own. So it changes no rule, bridge, mount
//! or folder of the machine, stands beside an engine that the machine may have, and goes without a
//! trace, also when the process that started it is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cell::{Cell, Keep, PATH};
use crate::call::Call;
use crate::wait::poll_until;

/// How long the engine may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the engine gives its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nothing: neither bridge nor rules are made, and every RUN needs `--network none`.
    None,
    /// The engine's usual bridge, inside the cell.
    Bridge,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    cell: Cell,
}

impl Engine {
    /// Starts an engine and waits until it answers.
    ///
    /// # Errors
    /// If it does not; with the last lines of its log.
    pub fn start(network: Network, keep: Keep) -> Result<Self> {
        let options = match network {
            Network::None => {
                "--bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false"
            }
            Network::Bridge => "",
        };
        let script = format!(
            "echo '{{}}' > \"$1/daemon.json\"\n\
             dockerd --data-root \"$1/data\" --exec-root \"$1/exec\" --pidfile \"$1/dockerd.pid\" \
             --host \"unix://$1/docker.sock\" --config-file \"$1/daemon.json\" \
             --cgroup-parent \"/$2\" {options} &\n\
             wait $!\n"
        );
        let engine = Self { cell: Cell::start("kiln-engine-", keep, &script)? };
        let ready = || {
            if !engine.cell.runs() {
                return Some(false);
            }
            engine.version().is_ok().then_some(true)
        };
        if poll_until(PATIENCE, ready) != Some(true) {
            bail!("the engine did not start\n{}", engine.cell.log());
        }
        Ok(engine)
    }

    /// Where it runs.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// A path in the engine's folder, which goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.cell.path(name)
    }

    /// The engine's version.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn version(&self) -> Result<String> {
        let output = self.docker(&["version", "--format", "{{.Server.Version}}"]).run_ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    /// A call of Docker's client. Builds are BuildKit's unless `DOCKER_BUILDKIT` is set to `0`.
    pub fn docker(&self, args: &[&str]) -> Call {
        self.environment(Call::new("/usr/bin/docker").args(args))
    }

    /// Gives a call what makes a client talk to this engine. Its home is the engine's folder, lest
    /// it read somebody's settings.
    pub fn environment(&self, call: Call) -> Call {
        call.env("PATH", PATH)
            .env("DOCKER_HOST", format!("unix://{}", self.path("docker.sock").display()))
            .env("HOME", self.cell.folder())
            .env("DOCKER_BUILDKIT", "1")
            .env("COMPOSE_DOCKER_CLI_BUILD", "1")
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_CONFIG")
    }

    /// Makes an image of a tar archive; `changes` are Dockerfile instructions for its configuration.
    ///
    /// # Errors
    /// If the engine refuses it.
    pub fn import(&self, tar: &Path, name: &str, changes: &[String]) -> Result<()> {
        let mut call = self.docker(&["import"]);
        for change in changes {
            call = call.arg("--change").arg(change);
        }
        call.arg(tar).arg(name).run_ok().context("importing an image")?;
        Ok(())
    }

    /// Loads an archive that `docker save` or `kiln export` has written, and returns what the client
    /// says: the names or the id of what it loaded.
    ///
    /// # Errors
    /// If the engine refuses it.
    pub fn load(&self, archive: &Path) -> Result<String> {
        let output = self.docker(&["load", "--input"]).arg(archive).run_ok()?;
        Ok(output.stdout)
    }

    /// Writes an image's file tree as one tar archive: what `docker export` gives of a container
    /// that is made of it and never started. The engine adds its own mount points to that
    /// (`/.dockerenv`, `/dev/console`, `/etc/hosts`, …).
    ///
    /// # Errors
    /// If the engine refuses it.
    pub fn export(&self, image: &str, tar: &Path) -> Result<()> {
        let made = self.docker(&["create", "--network", "none", image, "/none"]).run_ok()?;
        let id = made.stdout.trim().to_owned();
        self.docker(&["export", "--output"]).arg(tar).arg(&id).run_ok()?;
        self.docker(&["rm", "--force", &id]).run_ok()?;
        Ok(())
    }

    /// Writes an image with its layers, as `docker save` does.
    ///
    /// # Errors
    /// If the engine refuses it.
    pub fn save(&self, image: &str, tar: &Path) -> Result<()> {
        self.docker(&["save", "--output"]).arg(tar).arg(image).run_ok()?;
        Ok(())
    }

    /// An image `busybox` from the distribution's own busybox-static.
    ///
    /// # Errors
    /// If the package cannot be had, or the engine refuses it.
    pub fn import_busybox(&self) -> Result<()> {
        let dir = self.path("busybox");
        fs::create_dir(&dir)?;
        let package = Call::new("apt-get").args(["download", "busybox-static"]).dir(&dir);
        package.run_ok().context("busybox-static cannot be downloaded")?;
        let script = "dpkg-deb -x busybox-static_*.deb . && tar -cf busybox.tar bin/busybox";
        Call::new("/bin/sh").args(["-c", script]).dir(&dir).run_ok()?;
        self.import(&dir.join("busybox.tar"), "busybox", &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leftovers;

    /// Dropping closes the pipe to the keeper, as the kernel does for a process that is killed.
    #[test]
    fn goes_without_a_trace() {
        if super::super::lacks(&["dockerd", "docker"]) {
            return;
        }
        let engine = Engine::start(Network::None, Keep::InMemory).unwrap();
        let folder = engine.cell().folder().to_owned();
        let name = folder.file_name().unwrap().to_owned();
        let tar = engine.path("a.tar");
        Call::new("tar").args(["-C", "/etc", "-cf"]).arg(&tar).arg("hostname").run_ok().unwrap();
        engine.import(&tar, "a", &["ENV A=b".to_owned()]).unwrap();
        engine.export("a", &tar).unwrap();
        let listed = Call::new("tar").arg("-tf").arg(&tar).run_ok().unwrap();
        assert!(listed.stdout.contains("hostname"), "{listed}");
        let running = leftovers::processes(&folder, None);
        assert!(running.iter().any(|process| process.command.contains("dockerd")), "{running:?}");

        drop(engine);
        assert!(leftovers::processes(&folder, None).is_empty());
        assert!(!folder.exists());
        let top = Path::new("/sys/fs/cgroup");
        let groups = fs::read_dir(top).unwrap().flatten().map(|group| group.path());
        let left: Vec<PathBuf> = groups
            .chain([top.to_owned()])
            .map(|group| group.join(&name))
            .filter(|group| group.exists())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
