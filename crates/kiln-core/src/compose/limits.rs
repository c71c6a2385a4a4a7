//! Memory, cpu and pids limits, `ulimits`, `cap_add` and `cap_drop`.

use std::collections::{BTreeMap, BTreeSet};

use super::error::ComposeError;
use super::keys;
use super::model::Limits;
use super::reader::At;
use super::units;

/// Less than this is no memory for a program; Docker's own minimum.
const MIN_MEMORY: u64 = 6 << 20;

/// Reads `mem_limit`, `cpus`, `pids_limit` and `deploy.resources` of `service`.
pub(super) fn read(service: &At<'_>) -> Result<Limits, ComposeError> {
    let mut limits = Limits::default();
    for (key, limit) in [
        ("mem_limit", "memory"),
        ("cpus", "cpus"),
        ("pids_limit", "pids"),
        ("mem_reservation", "reservation"),
    ] {
        if let Some(at) = service.get(key).filter(|at| !at.is_unset()) {
            service.cx.keep(set(&mut limits, limit, &at));
        }
    }
    service.cx.keep(cpu_time(service, &mut limits));
    if let Some(deploy) = service.get("deploy")
        && let Some(resources) = deploy.get("resources")
    {
        service.cx.keep(of_deploy(&resources, &mut limits));
    }
    swap(service, &mut limits)?;
    Ok(limits)
}

fn of_deploy(resources: &At<'_>, limits: &mut Limits) -> Result<(), ComposeError> {
    for section in resources.entries()? {
        let section_keys = match section.key() {
            "limits" => &keys::LIMITS,
            "reservations" => &keys::RESERVATIONS,
            _ => {
                keys::RESOURCES.admit(&section)?;
                continue;
            }
        };
        for at in section.entries()? {
            if section_keys.admit(&at)? && !at.is_unset() {
                let reserved = section.key() == "reservations";
                let limit = if reserved { "reservation" } else { at.key() };
                resources.cx.keep(set(limits, limit, &at));
            }
        }
    }
    Ok(())
}

/// `cpu_quota` and `cpu_period` are `cpus` in other words; `cpu_shares` and `cpuset` stand alone.
fn cpu_time(service: &At<'_>, limits: &mut Limits) -> Result<(), ComposeError> {
    const PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
    let number = |key: &'static str| -> Result<Option<i64>, ComposeError> {
        let Some(at) = service.get(key).filter(|at| !at.is_unset()) else { return Ok(None) };
        Ok(Some(micro(&at)?).filter(|number| *number > 0))
    };
    let period = number("cpu_period")?.and_then(|period| u64::try_from(period).ok());
    if let Some(at) = service.get("cpu_period")
        && let Some(period) = period.filter(|period| !PERIODS.contains(period))
    {
        return Err(at.error(format!("a period of {period} µs is none")).with_hint("1ms to 1s"));
    }
    limits.period = period;
    if let Some(quota) = number("cpu_quota")?.and_then(|quota| u64::try_from(quota).ok()) {
        let period = u128::from(period.unwrap_or(100_000));
        let nano = u64::try_from(u128::from(quota) * 1_000_000_000 / period).ok();
        if limits.nano_cpus.is_some() && limits.nano_cpus != nano {
            let error = service.refuse("`cpus` and `cpu_quota` say different things");
            service.cx.refuse_to_run(error.with_hint("keep one of the two"));
        }
        limits.nano_cpus = nano;
    }
    if let Some(at) = service.get("cpu_shares").filter(|at| !at.is_unset()) {
        limits.shares =
            Some(at.number("a weight, 1024 is the usual one")?).filter(|shares| *shares > 0);
    }
    if let Some(at) = service.get("cpuset").filter(|at| !at.is_unset()) {
        let text = at.text()?;
        let part = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse::<u16>().ok().zip(last.parse::<u16>().ok()).is_some_and(|(a, b)| a <= b)
        };
        if !text.split(',').all(part) {
            return Err(at
                .error(format!("`{text}` is no list of cpus"))
                .with_hint("for example 0-2,4"));
        }
        limits.cpuset = Some(text);
    }
    Ok(())
}

/// Microseconds, as a number or a duration.
fn micro(at: &At<'_>) -> Result<i64, ComposeError> {
    let text = at.text()?;
    let whole = text.parse::<i64>().ok();
    let span = || units::duration(&text).and_then(|nano| i64::try_from(nano / 1_000).ok());
    whole.or_else(span).ok_or_else(|| at.expected("a number of microseconds"))
}

/// Memory and swap together; it means nothing without a limit of memory.
fn swap(service: &At<'_>, limits: &mut Limits) -> Result<(), ComposeError> {
    let Some(at) = service.get("memswap_limit").filter(|at| !at.is_unset()) else { return Ok(()) };
    if at.text()? == "-1" {
        limits.swap = Some(-1);
        return Ok(());
    }
    let bytes = i64::try_from(at.bytes()?).map_err(|_| at.expected("a size in bytes"))?;
    let memory = limits.memory.and_then(|memory| i64::try_from(memory).ok());
    match memory {
        _ if bytes == 0 => {}
        None => {
            let error = at.refuse("a limit of memory and swap together needs one of memory");
            at.cx.refuse_to_run(error.with_hint("add `mem_limit`"));
        }
        Some(memory) if bytes < memory => {
            return Err(at.error("memory and swap together are less than the memory alone"));
        }
        Some(_) => limits.swap = Some(bytes),
    }
    Ok(())
}

fn set(limits: &mut Limits, limit: &str, at: &At<'_>) -> Result<(), ComposeError> {
    let (slot, value) = match limit {
        "memory" => (&mut limits.memory, memory(at)?),
        "reservation" => (&mut limits.reservation, memory(at)?),
        "cpus" => (&mut limits.nano_cpus, cpus(at)?),
        _ => (&mut limits.pids, pids(at)?),
    };
    if slot.is_some() && value.is_some() && *slot != value {
        return Err(at
            .refuse("the limit is set twice, to different values")
            .with_hint("keep either the service's key or the one under `deploy`"));
    }
    *slot = value.or(*slot);
    Ok(())
}

/// 0 is no limit, as in Compose.
fn memory(at: &At<'_>) -> Result<Option<u64>, ComposeError> {
    // No limit, in the engine's own words.
    if at.text()? == "-1" {
        return Ok(None);
    }
    let bytes = at.bytes()?;
    if (1..MIN_MEMORY).contains(&bytes) {
        at.cx.refuse_to_run(at.error("less than 6 MB of memory are no use to a program"));
    }
    Ok((bytes > 0).then_some(bytes))
}

fn cpus(at: &At<'_>) -> Result<Option<u64>, ComposeError> {
    const WHAT: &str = "a number of cpus";
    let nano = units::nano_cpus(at.raw(WHAT)?)
        .ok_or_else(|| at.expected(WHAT).with_hint("for example `0.5` or `2`"))?;
    Ok((nano > 0).then_some(nano))
}

/// 0 and less is no limit, as in Compose.
fn pids(at: &At<'_>) -> Result<Option<u64>, ComposeError> {
    let number: i64 = at.number("a number of processes")?;
    Ok(u64::try_from(number).ok().filter(|number| *number > 0))
}

const ULIMITS: [&str; 15] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Reads `ulimits`: one number for both, or `soft` and `hard`; -1 is unlimited.
pub(super) fn ulimits(at: &At<'_>) -> Result<BTreeMap<String, (i64, i64)>, ComposeError> {
    let mut all = BTreeMap::new();
    for entry in at.entries()? {
        if entry.key() == "locks" {
            // The name is valid, and says nothing to Linux since 2.4.25.
            entry.list();
            continue;
        }
        let limit = at.cx.keep(ulimit(&entry));
        all.extend(limit.map(|limit| (entry.key().to_owned(), limit)));
    }
    Ok(all)
}

fn ulimit(entry: &At<'_>) -> Result<(i64, i64), ComposeError> {
    const WHAT: &str = "a whole number, or -1 for no limit";
    let number = |at: &At<'_>| -> Result<i64, ComposeError> {
        let number: i64 = at.number(WHAT)?;
        if number < -1 { Err(at.expected(WHAT)) } else { Ok(number) }
    };
    let name = entry.key();
    if !ULIMITS.contains(&name) {
        return Err(entry
            .refuse(format!("there is no limit `{name}`"))
            .with_hint(format!("one of {}", ULIMITS.join(", ")))
            .with_closest(name, ULIMITS));
    }
    let (soft, hard) = if entry.is_map() {
        let (mut soft, mut hard) = (None, None);
        for key in entry.entries()? {
            if !keys::ULIMIT.admit(&key)? {
                continue;
            }
            let slot = if key.key() == "soft" { &mut soft } else { &mut hard };
            *slot = Some(number(&key)?);
        }
        soft.zip(hard).ok_or_else(|| entry.error("both `soft` and `hard` are needed"))?
    } else {
        let both = number(entry)?;
        (both, both)
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(entry.error(format!("the soft limit {soft} is above the hard limit {hard}")));
    }
    Ok((soft, hard))
}

/// All capabilities of Linux 6, without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Reads `cap_add` or `cap_drop`.
pub(super) fn capabilities(at: &At<'_>) -> Result<BTreeSet<String>, ComposeError> {
    let mut all = BTreeSet::new();
    for item in at.items()? {
        let Some(text) = at.cx.keep(item.text()) else { continue };
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name != "ALL" && !CAPABILITIES.contains(&name) {
            let error = item.error(format!("there is no capability `{text}`"));
            at.cx.refuse(error.with_closest(name, CAPABILITIES));
            continue;
        }
        all.insert(name.to_owned());
    }
    Ok(all)
}
