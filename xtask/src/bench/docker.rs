//! Docker Engine and Docker Compose as a peer, from the distribution's packages.
//!
//! The engine runs in a network and a mount namespace of its own, on data and state folders of its
//! own. So it changes no rule, bridge, mount or folder of the machine, stands beside an engine that
//! the machine may have, and goes without a trace when its processes end. The bench's probers and
//! commands enter its network namespace, where its ports are published as ever.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kiln_testkit::wait::poll_until;
use kiln_testkit::{Call, Project, Running};
use rustix::process::{Pid, Signal};

use super::peer::{PATIENCE, Peer, Ports};

/// How long the engine may take to start, and to end.
const ENGINE_PATIENCE: Duration = Duration::from_secs(60);
/// Where the distribution's packages are, whatever else is on the caller's path.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Run in the new namespaces. `$1` is the bench's folder. The engine and its containerd keep keys
/// and sockets in fixed places too: those get a tmpfs that nobody else sees.
const START: &str = r#"
set -eu
ip link set lo up
for dir in /etc/docker /run/docker /run/containerd /etc/cni; do
    [ -d "$dir" ] || continue
    mount -t tmpfs tmpfs "$dir"
done
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/dockerd.pid" \
    --host "unix://$1/docker.sock" --config-file "$1/daemon.json" \
    >> "$1/dockerd.log" 2>&1
"#;

pub(super) struct Docker {
    folder: tempfile::TempDir,
    /// `unshare`, which waits for the engine.
    engine: Option<Running>,
    /// Folders that had to be made for the tmpfs mounts.
    made: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    ports: Ports,
}

impl Docker {
    /// Starts the engine and gives it the image `busybox`.
    pub(super) fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kiln-bench-docker-").tempdir()?;
        fs::write(folder.path().join("daemon.json"), "{}")?;
        let mut docker = Self {
            folder,
            engine: None,
            made: Vec::new(),
            cgroups: docker_cgroups(),
            ports: Ports::claim(),
        };
        for dir in ["/etc/docker", "/run/docker", "/run/containerd"].map(PathBuf::from) {
            if !dir.exists() {
                fs::create_dir(&dir)?;
                docker.made.push(dir);
            }
        }
        docker.start_engine()?;
        docker.make_base()?;
        Ok(docker)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_engine(&mut self) -> Result<()> {
        let engine = Call::new("unshare")
            .args(["--net", "--mount", "--propagation", "slave", "--fork", "--kill-child"])
            .args(["/bin/sh", "-c", START, "sh"])
            .arg(self.folder.path())
            .env("PATH", PATH)
            .spawn()?;
        self.engine = Some(engine);
        let ready = || {
            let call = self.docker(&["version", "--format", "{{.Server.Version}}"]);
            call.run().ok().filter(|output| output.success())
        };
        if poll_until(ENGINE_PATIENCE, ready).is_none() {
            let log = fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            bail!("the engine did not start\n{last}");
        }
        Ok(())
    }

    /// An image `busybox` from the distribution's own busybox-static, so that both peers run the
    /// same program.
    fn make_base(&self) -> Result<()> {
        let dir = self.path("busybox");
        fs::create_dir(&dir)?;
        let package = Call::new("apt-get").args(["download", "busybox-static"]).dir(&dir);
        package.run_ok().context("busybox-static cannot be downloaded")?;
        Call::new("/bin/sh")
            .args(["-c", "dpkg-deb -x busybox-static_*.deb ."])
            .dir(&dir)
            .run_ok()?;
        fs::write(dir.join("Dockerfile"), "FROM scratch\nCOPY bin/busybox /bin/busybox\n")?;
        fs::write(dir.join(".dockerignore"), "*\n!bin/busybox\n")?;
        self.docker(&["build", "--quiet", "--tag", "busybox"]).arg(&dir).run_ok()?;
        Ok(())
    }

    /// A call of Docker's client. Its home is the bench's, lest it read somebody's settings.
    fn docker(&self, args: &[&str]) -> Call {
        self.environment(Call::new("/usr/bin/docker").args(args).patience(PATIENCE))
    }

    fn environment(&self, call: Call) -> Call {
        call.env("PATH", PATH)
            .env("DOCKER_HOST", format!("unix://{}", self.path("docker.sock").display()))
            .env("HOME", self.folder.path())
            .env("DOCKER_BUILDKIT", "1")
            .env("COMPOSE_DOCKER_CLI_BUILD", "1")
            .env("COMPOSE_PROJECT_NAME", "six")
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_CONFIG")
    }

    fn compose(&self, project: &Project, args: &[&str]) -> Call {
        self.environment(self.ports.call("/usr/bin/docker-compose", project)).args(args)
    }

    /// The engine's own process id, by the file that it writes.
    fn engine_pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.path("dockerd.pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }
}

impl Peer for Docker {
    fn name(&self) -> &'static str {
        "Docker Compose"
    }

    fn versions(&self) -> Result<Vec<String>> {
        let engine = self.docker(&["version", "--format", "{{.Server.Version}}"]).run_ok()?;
        let compose =
            self.environment(Call::new("/usr/bin/docker-compose")).args(["version", "--short"]);
        Ok(vec![
            format!("Docker Engine {}", engine.stdout.trim()),
            format!("Docker Compose {}", compose.run_ok()?.stdout.trim()),
        ])
    }

    fn up(&self, project: &Project, changed: Option<&str>) -> Call {
        match changed {
            // Building only what was edited is the fastest way that it offers.
            Some(service) => self.compose(project, &["up", "--detach", "--build", service]),
            None => self.compose(project, &["up", "--detach"]),
        }
    }

    fn down(&self, project: &Project) -> Call {
        self.compose(project, &["down"])
    }

    fn rollback(&self, _project: &Project) -> Option<Call> {
        None
    }

    fn prepare_one(&self, project: &Project) -> Result<()> {
        self.docker(&["build", "--quiet", "--tag", "six-one"]).arg(project.dir()).run_ok().map(drop)
    }

    /// `docker run`, the quickest that it offers.
    fn start_one(&self, project: &Project) -> Call {
        let probe = format!("{}:/probe", project.path("probe").display());
        let port = format!("{}:8080", self.ports.number(6));
        self.docker(&["run", "--detach", "--name", "one", "--volume", &probe, "--publish", &port])
            .arg("six-one")
    }

    fn stop_one(&self, _project: &Project) -> Call {
        self.docker(&["rm", "--force", "one"])
    }

    /// Works on a thread in the engine's network namespace; what it starts is there too.
    fn inside(&self, work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()> {
        let pid = self.engine_pid().context("the engine does not run")?;
        let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
        let namespace = fs::File::open(&path).with_context(|| path.clone())?;
        let enter = || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering {path}"))?;
            work()
        };
        let joined = std::thread::scope(|scope| scope.spawn(enter).join());
        joined.map_err(|_| anyhow::anyhow!("a measurement panicked"))?
    }

    fn ports(&self) -> &Ports {
        &self.ports
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Killed, the engine would leave its containers' shims behind: it has to end by itself.
        drop(self.docker(&["ps", "--quiet"]).run().map(|list| {
            let ids: Vec<&str> = list.stdout.lines().collect();
            if !ids.is_empty() {
                drop(self.docker(&["rm", "--force"]).args(ids).run());
            }
        }));
        if let Some(pid) = self.engine_pid() {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        // What was started is `unshare`, which ends with the engine.
        if let Some(Err(error)) = self.engine.take().map(|run| run.wait_within(ENGINE_PATIENCE)) {
            eprintln!("warning: the engine: {error:#}");
        }
        for dir in &self.made {
            drop(fs::remove_dir(dir));
        }
        // Control groups are nobody's namespace; those that were there before stay.
        for group in docker_cgroups().iter().filter(|group| !self.cgroups.contains(group)) {
            if let Err(error) = remove_groups(group) {
                eprintln!("warning: {}: {error}", group.display());
            }
        }
    }
}

/// The engine's control groups, in every hierarchy.
fn docker_cgroups() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(top.to_owned())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join("docker"))
        .filter(|group| group.is_dir())
        .collect()
}

/// Removes a control group and those in it, the innermost first.
fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
