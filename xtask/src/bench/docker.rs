//! Docker Engine and Docker Compose as a peer, from the distribution's packages.
//!
//! The engine is private ([`kiln_testkit::peers::Engine`]); the bench's probers and commands enter
//! its network namespace, where its ports are published as ever.

use anyhow::Result;
use kiln_testkit::peers::{Engine, Keep, Network};
use kiln_testkit::{Call, Project};

use super::peer::{PATIENCE, Peer, Ports};

pub(super) struct Docker {
    engine: Engine,
    ports: Ports,
}

impl Docker {
    /// Starts the engine and gives it the image `busybox`, so that both peers run the same program.
    pub(super) fn start() -> Result<Self> {
        let engine = Engine::start(Network::Bridge, Keep::OnDisk)?;
        engine.import_busybox()?;
        Ok(Self { engine, ports: Ports::claim() })
    }

    fn docker(&self, args: &[&str]) -> Call {
        self.engine.docker(args).patience(PATIENCE)
    }

    fn compose(&self, project: &Project, args: &[&str]) -> Call {
        let call = self.ports.call("/usr/bin/docker-compose", project);
        self.engine.environment(call).env("COMPOSE_PROJECT_NAME", "six").args(args)
    }
}

impl Peer for Docker {
    fn name(&self) -> &'static str {
        "Docker Compose"
    }

    fn versions(&self) -> Result<Vec<String>> {
        let compose = self.engine.environment(Call::new("/usr/bin/docker-compose"));
        let compose = compose.args(["version", "--short"]).run_ok()?;
        Ok(vec![
            format!("Docker Engine {}", self.engine.version()?),
            format!("Docker Compose {}", compose.stdout.trim()),
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

    fn inside(&self, work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()> {
        self.engine.cell().inside(work)
    }

    fn ports(&self) -> &Ports {
        &self.ports
    }
}
