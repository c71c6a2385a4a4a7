//! Capabilities and limits of processes.

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::{Gid, Rlimit, Uid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::user::Identity;
use crate::error::{Context as _, Fault};
use crate::own;

/// The set of `names`, without `CAP_`.
pub(super) fn capability_set(names: &BTreeSet<String>) -> Result<CapabilitySet, Fault> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let one = CapabilitySet::from_name(name).ok_or_else(|| {
            Fault::new("set the capabilities", format!("there is no capability `{name}`"))
        })?;
        Ok(set | one)
    })
}

/// Becomes `identity` with at most `wanted` capabilities, for good. What the caller does not have
/// itself cannot be given; the names of those are returned.
pub(super) fn become_user(
    identity: &Identity,
    wanted: CapabilitySet,
) -> Result<Vec<String>, Fault> {
    let step = || format!("become user {}:{}", identity.uid, identity.gid);
    let mut held = CapabilitySet::empty();
    for one in CapabilitySet::all().iter() {
        // Fails beyond the last capability that this kernel knows.
        if !capability_is_in_bounding_set(one).unwrap_or(false) {
            continue;
        }
        if wanted.contains(one) {
            held |= one;
        } else {
            remove_capability_from_bounding_set(one)
                .step(|| "drop capabilities from the bounding set".to_owned())?;
        }
    }
    let groups: Vec<Gid> = identity.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_groups(&groups).step(step)?;
    set_thread_res_gid(gid, gid, gid).step(step)?;
    set_thread_res_uid(uid, uid, uid).step(step)?;
    clear_ambient_capability_set().step(|| "clear the ambient capabilities".to_owned())?;
    let now = if uid.is_root() { held } else { CapabilitySet::empty() };
    let sets =
        CapabilitySets { effective: now, permitted: now, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).step(|| "set the capabilities".to_owned())?;
    Ok((wanted - held).iter_names().map(|(name, _)| name.to_owned()).collect())
}

/// Sets what a program gets besides the limits that it asks for: those are left as they are, for
/// what is lowered may not be raised again. A host that allows less gives what it can, which is not
/// worth a word.
pub(super) fn limit_by_default(asked: &BTreeMap<String, (i64, i64)>) -> Result<(), Fault> {
    limit(&own::limits_beside(asked)).map(drop)
}

/// Sets `limits`. Raising one needs CAP_SYS_RESOURCE, which a host may not have: such a limit is
/// set as high as it can be, and the returned lines say so.
pub(super) fn limit(limits: &BTreeMap<String, (i64, i64)>) -> Result<Vec<String>, Fault> {
    let mut warnings = Vec::new();
    for (name, &(soft, hard)) in limits {
        let step = || format!("set the ulimit `{name}`");
        let resource = own::resource(name)
            .ok_or_else(|| Fault::new(step(), "there is no such limit; see setrlimit(2)"))?;
        let bound = |value: i64| u64::try_from(value).ok();
        let wanted = Rlimit { current: bound(soft), maximum: bound(hard) };
        match setrlimit(resource, wanted) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => {
                let maximum = rustix::process::getrlimit(resource).maximum;
                let most = |value: Option<u64>| match (value, maximum) {
                    (Some(value), Some(maximum)) => Some(value.min(maximum)),
                    (value, maximum) => value.or(maximum),
                };
                let lower = Rlimit { current: most(wanted.current), maximum };
                setrlimit(resource, lower).step(step)?;
                warnings.push(format!(
                    "ulimit `{name}` stays at {}: raising it needs CAP_SYS_RESOURCE",
                    maximum.map_or_else(|| "unlimited".to_owned(), |value| value.to_string()),
                ));
            }
            Err(error) => return Err(error).step(step),
        }
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_by_name() {
        let names = crate::spec::DEFAULT_CAPABILITIES.map(str::to_owned);
        let set = capability_set(&BTreeSet::from(names)).unwrap();
        // The value that `docker run debian grep CapEff /proc/self/status` shows.
        assert_eq!(set.bits(), 0xa804_25fb);
        assert!(capability_set(&BTreeSet::from(["NONE".to_owned()])).is_err());
    }

    #[test]
    fn unknown_limits_are_refused() {
        let limits = BTreeMap::from([("files".to_owned(), (1, 1))]);
        assert!(limit(&limits).unwrap_err().step.contains("`files`"));
    }
}
