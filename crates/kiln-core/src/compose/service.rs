//! One service, key by key.

use std::collections::BTreeMap;

use super::error::ComposeError;
use super::model::{Condition, Dependency, Restart, Service};
use super::project::Sections;
use super::reader::At;
use super::units::Words;
use super::{
    build, devices, environment, files, hooks, keys, limits, mounts, namespaces, network, ports,
    units,
};
use crate::image::Healthcheck;

/// `profiles` of a service.
pub(super) fn profiles(service: &At<'_>) -> Result<Vec<String>, ComposeError> {
    let Some(at) = service.get("profiles") else { return Ok(Vec::new()) };
    at.texts()
}

/// Reads a service that is switched on.
pub(super) fn read(at: &At<'_>, sections: &Sections) -> Result<Service, ComposeError> {
    let mut service = Service { place: at.shown_place(), ..Service::default() };
    for key in at.entries()? {
        if keys::SERVICE.admit(&key)? {
            at.cx.keep(read_key(&mut service, &key, sections));
        }
    }
    service.environment = at.cx.keep(environment::read(at)).unwrap_or_default();
    service.limits = at.cx.keep(limits::read(at)).unwrap_or_default();
    if let Some(deploy) = at.get("deploy")
        && let Some(Some(restart)) = at.cx.keep(self::deploy(&deploy))
    {
        service.restart = Some(restart);
    }
    at.cx.keep(network::settle(at, &mut service));
    at.cx.keep(image(at, &mut service));
    at.cx.keep(mounts::no_target_twice(at, &service));
    Ok(service)
}

fn read_key(service: &mut Service, at: &At<'_>, sections: &Sections) -> Result<(), ComposeError> {
    // A key without a value is as good as not there; an empty command is one.
    if at.is_null() || (at.is_unset() && !matches!(at.key(), "command" | "entrypoint")) {
        return Ok(());
    }
    match at.key() {
        "build" => service.build = Some(build::read(at, sections)?),
        "cap_add" => service.cap_add = limits::capabilities(at)?,
        "cap_drop" => service.cap_drop = limits::capabilities(at)?,
        "command" => service.command = Some(command(at)?),
        "configs" => service.files.extend(files::mounts(at, &sections.configs, false)?),
        "depends_on" => service.depends_on = depends_on(at)?,
        // Read when all keys are.
        "deploy" => {}
        "entrypoint" => service.entrypoint = Some(command(at)?),
        "expose" => service.expose = ports::expose(at)?,
        "extra_hosts" => service.extra_hosts = network::extra_hosts(at)?,
        "healthcheck" => service.healthcheck = Some(healthcheck(at)?),
        "hostname" => service.hostname = Some(network::hostname(at)?),
        "init" => service.init = at.truth()?,
        "links" => network::links(at, service)?,
        "network_mode" => service.network_mode = network::mode(at, &sections.containers)?,
        "networks" => service.networks = network::of_service(at, &sections.networks)?,
        "devices" => service.devices = devices::read(at)?,
        "post_start" => service.post_start = hooks::read(at)?,
        "pre_stop" => service.pre_stop = hooks::read(at)?,
        "ports" => service.ports = ports::published(at)?,
        "read_only" => service.read_only = Some(at.truth()?),
        "restart" => service.restart = Some(restart(at)?),
        "scale" => one_replica(at)?,
        "secrets" => service.files.extend(files::mounts(at, &sections.secrets, true)?),
        "security_opt" => namespaces::security(at, service)?,
        "group_add" => service.groups = namespaces::groups(at)?,
        "sysctls" => service.sysctls = namespaces::sysctls(at)?,
        "dns" | "dns_search" | "dns_opt" => namespaces::dns(at, &mut service.dns)?,
        "shm_size" => service.shm_size = Some(at.bytes()?),
        "stop_grace_period" => service.stop_grace_period = Some(at.duration()?),
        "platform" => super::build::platform(at)?,
        "stop_signal" => service.stop_signal = Some(stop_signal(at)?),
        "tmpfs" => mounts::tmpfs(at, service)?,
        "ulimits" => service.ulimits = limits::ulimits(at)?,
        "user" => service.user = Some(at.text()?),
        "volumes" => mounts::volumes(at, service, &sections.volumes)?,
        "working_dir" => service.working_dir = Some(at.target(&at.text()?)?),
        "x-kiln" => super::kiln::of_service(at, service)?,
        // Read together, or before.
        _ => {}
    }
    Ok(())
}

/// `image` beside `build` is only a tag; alone it names a base, or an image of a registry.
fn image(at: &At<'_>, service: &mut Service) -> Result<(), ComposeError> {
    // What is refused about a build or a provider has been said.
    let other = |key: &str| at.get(key).is_some_and(|at| !at.is_unset());
    let Some(image) = at.get("image").filter(|image| !image.is_unset()) else {
        if other("build") || other("provider") {
            return Ok(());
        }
        return Err(at.refuse("the service has neither `image` nor `build`").with_hint(
            "name an image or a base of x-kiln.bases with `image`, or a directory with `build`",
        ));
    };
    if service.build.is_some() {
        image.list_as("only a tag beside `build`");
        return Ok(());
    }
    service.image = Some(image.text()?);
    Ok(())
}

/// A command line: a list of words, or text that is split as a shell does.
pub(super) fn command(at: &At<'_>) -> Result<Vec<String>, ComposeError> {
    if at.is_list() {
        return at.texts();
    }
    if at.is_map() {
        return Err(at.expected("text or a list of words"));
    }
    let Words { words, cut } = units::words(&at.text()?).map_err(|open| {
        at.error(format!("the command cannot be split into words: {open}"))
            .with_hint("write it as a list: [\"program\", \"argument\"]")
    })?;
    if let Some(sign) = cut {
        at.cx.warn(format!(
            "{}: {}: no shell reads this: what stands behind `{sign}` is dropped, as Compose does; \
             write [\"sh\", \"-c\", \"…\"]",
            at.shown_place(),
            at.path()
        ));
    }
    Ok(words)
}

fn depends_on(at: &At<'_>) -> Result<BTreeMap<String, Dependency>, ComposeError> {
    let mut all = BTreeMap::new();
    for entry in at.entries()? {
        let dependency = at.cx.keep(dependency(&entry));
        all.extend(dependency.map(|dependency| (entry.key().to_owned(), dependency)));
    }
    Ok(all)
}

fn dependency(at: &At<'_>) -> Result<Dependency, ComposeError> {
    let mut dependency = Dependency { condition: Condition::ServiceStarted, required: true };
    for key in at.entries()? {
        if !keys::DEPENDS_ON.admit(&key)? {
            continue;
        }
        match key.key() {
            "condition" => dependency.condition = condition(&key)?,
            _ => dependency.required = key.truth()?,
        }
    }
    Ok(dependency)
}

fn condition(at: &At<'_>) -> Result<Condition, ComposeError> {
    const ALL: [&str; 3] = ["service_started", "service_healthy", "service_completed_successfully"];
    let text = at.text()?;
    match text.as_str() {
        "service_started" => Ok(Condition::ServiceStarted),
        "service_healthy" => Ok(Condition::ServiceHealthy),
        "service_completed_successfully" => Ok(Condition::ServiceCompletedSuccessfully),
        _ => Err(at
            .error(format!("`{text}` is no condition"))
            .with_hint(format!("one of {}", ALL.join(", ")))),
    }
}

fn healthcheck(at: &At<'_>) -> Result<Healthcheck, ComposeError> {
    let mut check = Healthcheck::default();
    let mut disable = false;
    for key in at.entries()? {
        if !keys::HEALTHCHECK.admit(&key)? || key.is_unset() {
            continue;
        }
        let span = || at.cx.keep(key.duration());
        match key.key() {
            "test" => check.test = at.cx.keep(health_test(&key)).unwrap_or_default(),
            "disable" => disable = at.cx.keep(key.truth()).unwrap_or_default(),
            "interval" => check.interval = span(),
            "timeout" => check.timeout = span(),
            "start_period" => check.start_period = span(),
            "start_interval" => check.start_interval = span(),
            _ => check.retries = at.cx.keep(key.number("a number of failures")),
        }
    }
    if disable {
        check = Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() };
    }
    Ok(check)
}

fn health_test(at: &At<'_>) -> Result<Vec<String>, ComposeError> {
    if !at.is_list() {
        let text = at.text()?;
        return Ok(if text.is_empty() { Vec::new() } else { vec!["CMD-SHELL".into(), text] });
    }
    let test = at.texts()?;
    match (test.first().map(String::as_str), &test[..]) {
        (None, _) => Ok(test),
        (Some("NONE"), _) => Ok(vec!["NONE".into()]),
        (Some("CMD"), [_, _, ..]) | (Some("CMD-SHELL"), [_, _]) => Ok(test),
        // The words behind the first are the shell's own arguments.
        (Some("CMD-SHELL"), [_, rest @ ..]) if !rest.is_empty() => {
            let shell = ["CMD", "/bin/sh", "-c"].map(str::to_owned);
            Ok(shell.into_iter().chain(rest.iter().cloned()).collect())
        }
        _ => Err(at
            .error("a `test` that is a list begins with CMD, CMD-SHELL or NONE")
            .with_hint("for example [\"CMD\", \"curl\", \"-f\", \"http://localhost/\"]")),
    }
}

fn restart(at: &At<'_>) -> Result<Restart, ComposeError> {
    let text = at.text()?;
    let (policy, max) = match text.split_once(':') {
        Some((policy, max)) => (policy, Some(max)),
        None => (text.as_str(), None),
    };
    match (policy, max) {
        ("no" | "", None) => Ok(Restart::No),
        ("always" | "unless-stopped", None) => Ok(Restart::Always),
        ("on-failure", None) => Ok(Restart::OnFailure { max: None }),
        ("on-failure", Some(max)) if max.parse::<u32>().is_ok() => {
            Ok(Restart::OnFailure { max: max.parse().ok() })
        }
        _ => Err(at
            .error(format!("`{text}` is no restart policy"))
            .with_hint("one of \"no\", always, on-failure, on-failure:NUMBER, unless-stopped")),
    }
}

/// Names of signals that can stop a program, without `SIG`.
const SIGNALS: [&str; 26] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CONT", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "USR1",
    "USR2", "WINCH",
];

fn stop_signal(at: &At<'_>) -> Result<String, ComposeError> {
    let text = at.text()?;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = name
        .strip_prefix("RTMIN+")
        .or_else(|| name.strip_prefix("RTMAX-"))
        .is_some_and(|offset| offset.parse::<u8>().is_ok_and(|offset| offset <= 30));
    if real_time || SIGNALS.contains(&name) || matches!(name, "RTMIN" | "RTMAX") {
        return Ok(format!("SIG{name}"));
    }
    if text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number)) {
        return Ok(text);
    }
    let error = at.error(format!("`{text}` is no signal"));
    Err(match super::closest(name, SIGNALS) {
        Some(near) => error.with_hint(format!("did you mean `SIG{near}`?")),
        None => error.with_hint("for example SIGTERM, SIGINT or 15"),
    })
}

fn one_replica(at: &At<'_>) -> Result<(), ComposeError> {
    if at.number::<u32>("a number of instances")? == 1 {
        at.list();
        return Ok(());
    }
    Err(at.error("a service has one instance").with_hint("leave it out, or write 1"))
}

/// Gives what `restart_policy` says, which wins over `restart` as in Compose.
fn deploy(at: &At<'_>) -> Result<Option<Restart>, ComposeError> {
    let mut restart = None;
    for key in at.entries()? {
        if !keys::DEPLOY.admit(&key)? || key.is_unset() {
            continue;
        }
        match key.key() {
            "restart_policy" => restart = at.cx.keep(restart_policy(&key)),
            "mode" if key.text()? == "replicated" => key.list(),
            "mode" => {
                let what = format!("the mode `{}` is not supported", key.text()?);
                at.cx.refuse(key.error(what).with_hint("leave `mode` out: there is one instance"));
            }
            "replicas" => {
                at.cx.keep(one_replica(&key));
            }
            // `limits` reads the resources, as they stand beside keys of the service.
            _ => {}
        }
    }
    Ok(restart)
}

fn restart_policy(at: &At<'_>) -> Result<Restart, ComposeError> {
    let (mut condition, mut max) = ("any".to_owned(), None);
    for key in at.entries()? {
        if !keys::RESTART_POLICY.admit(&key)? || key.is_unset() {
            continue;
        }
        match key.key() {
            "condition" => condition = key.text()?,
            _ => max = Some(key.number("a number of attempts")?).filter(|max| *max > 0),
        }
    }
    match condition.as_str() {
        "none" | "no" => Ok(Restart::No),
        "on-failure" => Ok(Restart::OnFailure { max }),
        "any" | "always" | "unless-stopped" => Ok(Restart::Always),
        other => Err(at
            .error(format!("`{other}` is no condition of a restart"))
            .with_hint("one of none, on-failure, any")),
    }
}
