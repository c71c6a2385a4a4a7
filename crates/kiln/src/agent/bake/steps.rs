//! Steps run in the same sandbox as instances.

use std::sync::atomic::{AtomicBool, Ordering};

use kiln_bake::{StepExit, StepRunner, StepSpec};
use kiln_core::exit::Exit;
use kiln_run::Stopped;
use kiln_run::net::NetSpec;

use crate::agent::Agent;
use crate::report::{Because, Report};

/// Runs steps for an agent until the flag is set, no more at once than the machine has cores.
pub(super) struct Steps<'a>(pub(super) &'a Agent, pub(super) &'a AtomicBool);

impl StepRunner for Steps<'_> {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        self.run_under(&kiln_run::Conditions::default(), spec, output)
    }
}

impl Steps<'_> {
    /// Runs a step under `conditions`.
    pub(super) fn run_under(
        &self,
        conditions: &kiln_run::Conditions,
        spec: &StepSpec,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<StepExit, String> {
        let mounts = spec.mounts.iter().map(|mount| kiln_run::BindMount {
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
            node: None,
        });
        let mut step = kiln_run::StepSpec {
            lower: spec.lower.clone(),
            upper_dir: spec.upper_dir.clone(),
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            user: spec.user.clone(),
            hostname: spec.hostname.clone(),
            mounts: mounts.collect(),
            stdin: spec.stdin.clone(),
            network: None,
            rootful: spec.rootful,
            around: around(&spec.around),
        };
        let ended = || self.1.load(Ordering::Acquire) || spec.stop.load(Ordering::Acquire);
        let Some(_permit) = self.0.steps.take(&ended) else {
            return Err("it was interrupted before it began".into());
        };
        let way_out = spec.network.then(|| WayOut::open(self.0)).transpose();
        let way_out = way_out.map_err(|report| report.to_string())?;
        step.network = way_out.as_ref().map(|way_out| way_out.net.clone());
        let exit = self.0.runtime.run_step_under(&step, conditions, &ended, output);
        drop(way_out);
        let exit = exit.map_err(|error| {
            let report = Report::from_error(Exit::Failed, &error);
            report.to_string()
        })?;
        let mut notices = notices(&exit);
        if spec.network {
            notices.extend(kiln_run::net::resolv_conf().ok().and_then(|found| found.warning));
            notices.extend(proxies_out_of_reach(&spec.env));
        }
        Ok(StepExit {
            notices,
            stopped: exit.stopped.map(|stopped| said(&stopped)),
            code: exit.code,
            signal: exit.signal,
        })
    }
}

/// An address from which a step reaches the outside, and no instance. Given back when dropped.
struct WayOut<'a> {
    agent: &'a Agent,
    net: NetSpec,
}

impl<'a> WayOut<'a> {
    fn open(agent: &'a Agent) -> Result<Self, Report> {
        let address = agent.addresses.take_instance(&agent.host)?;
        match agent.host.admit(address, None) {
            Ok(net) => Ok(Self { agent, net }),
            Err(error) => {
                agent.addresses.give_back(address);
                Err(error).because(|| "opening a way out for the step".into())
            }
        }
    }
}

impl Drop for WayOut<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.agent.host.expel(self.net.address) {
            self.agent.log(&format!("closing the way out of a step: {error}"));
        }
        self.agent.addresses.give_back(self.net.address);
    }
}

/// Proxies in the environment of a step that listen on the loopback of the machine: the step has
/// one of its own.
fn proxies_out_of_reach(env: &[String]) -> Option<String> {
    let proxies = env.iter().filter_map(|pair| pair.split_once('=')).filter(|(name, value)| {
        let name = name.to_ascii_lowercase();
        let host = value.split_once("://").map_or(*value, |(_, rest)| rest);
        let host = host.rsplit_once('@').map_or(host, |(_, rest)| rest);
        let local = ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local));
        name.ends_with("_proxy") && name != "no_proxy" && local
    });
    let names: std::collections::BTreeSet<&str> = proxies.map(|(name, _)| name).collect();
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} names this machine's loopback, which a step does not reach: have the proxy listen \
             on an address of the network, and name that",
            names.join(", ")
        )
    })
}

fn around(around: &kiln_bake::Around) -> kiln_run::Around {
    let images = around.images.iter().map(|image| kiln_run::ImageMount {
        lower: image.lower.clone(),
        upper: image.upper_dir.clone(),
        path: image.path.clone(),
        dir: image.dir,
        target: image.target.clone(),
        read_only: image.read_only,
    });
    let secrets = around.secrets.iter().map(|secret| kiln_run::SecretFile {
        content: secret.content.clone(),
        target: secret.target.clone(),
        uid: secret.uid,
        gid: secret.gid,
        mode: secret.mode,
    });
    let usual = kiln_run::Around::default();
    kiln_run::Around {
        images: images.collect(),
        tmpfs: around.tmpfs.clone(),
        secrets: secrets.collect(),
        shm_size: around.shm_size.unwrap_or(usual.shm_size),
        tasks: tasks(&around.ulimits).unwrap_or(usual.tasks),
        ulimits: around.ulimits.clone(),
        ..usual
    }
}

/// How many processes and threads `build.ulimits` grants: the kernel does not hold root to it.
fn tasks(ulimits: &std::collections::BTreeMap<String, (i64, i64)>) -> Option<u64> {
    let (soft, _) = ulimits.get("nproc")?;
    // -1: as many as there may be.
    Some(u64::try_from(*soft).unwrap_or(u64::MAX))
}

fn said(stopped: &Stopped) -> String {
    match stopped {
        Stopped::Processes { most } => {
            format!("was ended: it had more than {most} processes and threads at once")
        }
        Stopped::Disk { path, free, inodes } => format!(
            "was ended: it left only {} MB and {inodes} inodes of the file system of {}",
            free >> 20,
            path.display()
        ),
        Stopped::MachineMemory { available, held } => format!(
            "was ended: it held {} MB and left only {} MB of this machine's memory",
            held >> 20,
            available >> 20
        ),
        Stopped::Memory => "failed: the kernel killed a process of it for want of memory".into(),
    }
}

fn notices(exit: &kiln_run::StepExit) -> Vec<String> {
    let mut notices = Vec::new();
    if !exit.left.is_empty() {
        notices.push(format!(
            "it left {} running, which ended with it: what a step starts does not go on, and what \
             it was writing may be incomplete; wait for it, or start it with the instance",
            exit.left.join(", ")
        ));
    }
    if exit.memory_kills > 0 && exit.stopped.is_none() {
        notices.push(format!(
            "the kernel killed {} process(es) of this machine for want of memory while it ran; if \
             one was a part of a pipeline, the step may have succeeded without it: `SHELL \
             [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]` has it fail then",
            exit.memory_kills
        ));
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_of_the_machine_itself_are_named() {
        let env = |pairs: &[&str]| pairs.iter().map(|pair| (*pair).to_owned()).collect::<Vec<_>>();
        let said = proxies_out_of_reach(&env(&[
            "http_proxy=http://user:word@127.0.0.1:3128/",
            "HTTPS_PROXY=localhost:3128",
            "no_proxy=localhost",
            "ftp_proxy=http://proxy.lan:3128",
            "OTHER=127.0.0.1",
        ]));
        let said = said.unwrap();
        assert!(said.starts_with("HTTPS_PROXY, http_proxy names"), "{said}");
        assert!(!said.contains("word"), "no password: {said}");
        assert_eq!(proxies_out_of_reach(&env(&["http_proxy=http://10.0.0.1:80"])), None);
    }

    #[test]
    fn what_went_wrong_is_named() {
        let disk = Stopped::Disk { path: "/var/lib/kiln".into(), free: 700 << 20, inodes: 9 };
        for (stopped, words) in [
            (Stopped::Processes { most: 5 }, "more than 5 processes"),
            (disk, "only 700 MB and 9 inodes of the file system of /var/lib/kiln"),
            (Stopped::Memory, "want of memory"),
        ] {
            assert!(said(&stopped).contains(words), "{stopped:?}");
        }
        let mut exit = kiln_run::StepExit::default();
        assert!(notices(&exit).is_empty());
        (exit.left, exit.memory_kills) = (vec!["redis-server".into()], 2);
        let told = notices(&exit);
        assert!(
            told[0].contains("redis-server running") && told[1].contains("pipefail"),
            "{told:?}"
        );
        // A failure of its own says it better.
        exit.stopped = Some(Stopped::Memory);
        assert_eq!(notices(&exit).len(), 1);
    }
}
