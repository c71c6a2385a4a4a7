//! The root's own policy for a stage: `policy/PROJECT/STAGE` below the root.

use std::io::{self, Read as _};

use kiln_core::compose::NetworkMode;
use kiln_core::policy::{RootPolicy, Undoing, undoing};
use kiln_core::release::Settings;
use kiln_core::{Release, exit::Exit};
use kiln_run::Device;

use super::Agent;
use super::session::Session;
use super::stage::StageId;
use crate::report::{Because, Report};

/// No policy is longer.
const MOST: u64 = 1 << 20;

/// Names what of `release` undoes the sandbox, and refuses what `stage` may not have.
pub(crate) fn judge(
    agent: &Agent,
    session: &Session,
    stage: &StageId,
    release: &Release,
) -> Result<(), Report> {
    host_networks(agent, session, stage, release)?;
    judge_unconfined(agent, session, stage, release)?;
    judge_devices(agent, session, stage, release)?;
    // What states none has the usual ones, which undo nothing.
    let services = release.services.iter().filter_map(|(name, released)| {
        Some((name.as_str(), released.settings.capabilities.as_ref()?))
    });
    let found = undoing(services.clone(), &stage.stage, &RootPolicy::default());
    if found.is_empty() {
        return Ok(());
    }
    let found = if found.iter().all(|one| one.allowed) {
        found
    } else {
        undoing(services, &stage.stage, &read(agent, stage)?)
    };
    let (allowed, refused): (Vec<_>, Vec<_>) = found.iter().partition(|one| one.allowed);
    if refused.is_empty() {
        for one in allowed {
            session.notice(format!("{}: what runs there is not kept in its sandbox", told(one)));
        }
        return Ok(());
    }
    let names: Vec<String> = refused.iter().map(|one| told(one)).collect();
    let lines: Vec<String> = refused
        .iter()
        .map(|one| format!("allow-capability {} {}", one.service, one.capability))
        .collect();
    Err(Report::refused(format!("`{stage}` may not run {}", names.join(", "))).hint(format!(
        "leave it out of `cap_add`, or allow it on this root by `{}` in {}, which begins with \
         `kiln-policy 1`",
        lines.join("`, `"),
        path(agent, stage).display()
    )))
}

/// The host's own network is nobody's to ask for: it has all ports and all loopback servers of the
/// machine.
fn host_networks(
    agent: &Agent,
    session: &Session,
    stage: &StageId,
    release: &Release,
) -> Result<(), Report> {
    let has_it = release
        .services
        .iter()
        .filter(|(_, it)| it.settings.network_mode == Some(NetworkMode::Host));
    let services: Vec<&String> = has_it.map(|(name, _)| name).collect();
    if services.is_empty() {
        return Ok(());
    }
    let policy = read(agent, stage)?;
    for name in services {
        if !policy.allows_host_network(name) {
            let message = format!("`{stage}` may not run service `{name}` in the host's network");
            return Err(Report::refused(message).hint(format!(
                "leave `network_mode: host` out, or allow it on this root by \
                 `allow-host-network {name}` in {}, which begins with `kiln-policy 1`",
                path(agent, stage).display()
            )));
        }
        session.notice(format!(
            "service `{name}` has the host's network: it reaches all that the machine does, and \
             the front publishes none of its ports"
        ));
    }
    Ok(())
}

/// The same for services that ask to run without the filter of system calls.
fn judge_unconfined(
    agent: &Agent,
    session: &Session,
    stage: &StageId,
    release: &Release,
) -> Result<(), Report> {
    let asking = release.services.iter().filter(|(_, released)| released.settings.unconfined);
    let names: Vec<&String> = asking.map(|(name, _)| name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let policy = if stage.stage == "dev" { None } else { Some(read(agent, stage)?) };
    let refused = |name: &&&String| policy.as_ref().is_some_and(|it| !it.allows_unconfined(name));
    if let Some(name) = names.iter().find(refused) {
        return Err(Report::refused(format!(
            "`{stage}` may not run service `{name}` without the filter of system calls"
        ))
        .hint(format!(
            "leave `seccomp:unconfined` out of `security_opt`, or allow it on this root by \
             `allow-unconfined {name}` in {}, which begins with `kiln-policy 1`",
            path(agent, stage).display()
        )));
    }
    for name in names {
        session.notice(format!(
            "service `{name}` runs without the filter of system calls: more of the kernel is open to it"
        ));
    }
    Ok(())
}

/// A device of the host is the machine's own, in whichever stage.
fn judge_devices(
    agent: &Agent,
    session: &Session,
    stage: &StageId,
    release: &Release,
) -> Result<(), Report> {
    let services = release.services.iter().map(|(name, it)| (name, &it.settings));
    let asking: Vec<_> = services.filter(|(_, settings)| !settings.devices.is_empty()).collect();
    if asking.is_empty() {
        return Ok(());
    }
    let policy = read(agent, stage)?;
    let mut lines = Vec::new();
    for (name, settings) in &asking {
        let refused = settings.devices.iter().filter(|it| !policy.allows_device(name, it));
        lines.extend(refused.map(|it| format!("allow-device {name} {} {}", it.source, it.access)));
    }
    if !lines.is_empty() {
        let names: Vec<String> = asking.iter().map(|(name, _)| format!("`{name}`")).collect();
        return Err(Report::refused(format!(
            "`{stage}` may not give these devices of the host to {}",
            names.join(", ")
        ))
        .hint(format!(
            "leave them out of `devices`, or allow them on this root by `{}` in {}, which begins \
             with `kiln-policy 1`",
            lines.join("`, `"),
            path(agent, stage).display()
        )));
    }
    for (name, settings) in asking {
        let (found, missing) = devices(name, settings)?;
        for Device { source, target, access, .. } in found {
            session.notice(format!(
                "service `{name}` has the host's device {} ({access}) at {target}",
                source.display()
            ));
        }
        for what in missing {
            session.notice(format!("service `{name}`: {what}"));
        }
    }
    Ok(())
}

/// The devices of a service as they are on this host, and what there is to say of those that are not.
///
/// # Errors
/// When something else is there.
pub(crate) fn devices(
    service: &str,
    settings: &Settings,
) -> Result<(Vec<Device>, Vec<String>), Report> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for kiln_core::compose::Device { source, target, access } in &settings.devices {
        match kiln_run::devices::look(std::path::Path::new(source)) {
            Ok(Some((block, major, minor))) => {
                let (source, target, access) = (source.into(), target.clone(), access.clone());
                found.push(Device { source, target, block, major, minor, access });
            }
            Ok(None) => missing.push(format!("the host has no device {source}: it runs without")),
            Err(why) => {
                let message =
                    format!("service `{service}` asks for the device {source}, which {why}");
                return Err(Report::refused(message)
                    .hint("`devices` names the node of a device itself, for example /dev/fuse"));
            }
        }
    }
    Ok((found, missing))
}

fn told(one: &Undoing) -> String {
    format!("service `{}` with CAP_{}, which {}", one.service, one.capability, one.why)
}

fn path(agent: &Agent, stage: &StageId) -> std::path::PathBuf {
    agent.root.join("policy").join(&stage.project).join(&stage.stage)
}

fn read(agent: &Agent, stage: &StageId) -> Result<RootPolicy, Report> {
    let path = path(agent, stage);
    let doing = || format!("reading the policy {}", path.display());
    let mut text = String::new();
    match std::fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RootPolicy::default()),
        file => file.because(doing)?.take(MOST).read_to_string(&mut text).because(doing)?,
    };
    RootPolicy::parse(&text)
        .map_err(|error| Report::new(Exit::Usage, format!("{}: {error}", path.display())))
}
