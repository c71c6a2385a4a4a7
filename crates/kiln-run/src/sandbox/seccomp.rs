//! The seccomp filter: an allow-list equal to Docker's default profile, or stricter.
//!
//! Where it is stricter: no 32-bit system calls (the process is killed), no `io_uring`. Two
//! filters are stacked, for one has one answer for what it refuses: the list answers EPERM, and
//! `clone3` must answer ENOSYS so that C libraries fall back to `clone`, whose flags can be seen.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::syscalls::{BY_CAPABILITY, COMMON, LEGACY, RECENT};
use crate::error::Fault;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Values of `personality` that change nothing of security: Linux, with and without the
/// compatibility bits, and "ask".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Compiled filters, in the order in which they are installed.
#[derive(Debug)]
pub(crate) struct Seccomp(Vec<BpfProgram>);

impl Seccomp {
    /// The filters for a process with `capabilities` (without `CAP_`).
    pub(crate) fn compile(capabilities: &BTreeSet<String>) -> Result<Self, Fault> {
        build(capabilities).map_err(|error| Fault::new("compile the seccomp filter", error))
    }

    /// Installs the filters. `no_new_privs` must be on, and nothing that they refuse is needed
    /// afterwards.
    pub(crate) fn install(&self) -> Result<(), Fault> {
        for program in &self.0 {
            seccompiler::apply_filter(program)
                .map_err(|error| Fault::new("install the seccomp filter", error))?;
        }
        Ok(())
    }
}

fn build(capabilities: &BTreeSet<String>) -> Result<Seccomp, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &number in COMMON.iter().chain(LEGACY).chain(RECENT) {
        rules.insert(number, Vec::new());
    }
    rules.insert(
        libc::SYS_socket,
        vec![only(0, Op::Ne, u64::from(libc::AF_VSOCK.cast_unsigned()))?],
    );
    let personality: Result<Vec<_>, _> =
        PERSONALITIES.into_iter().map(|value| only(0, Op::Eq, value)).collect();
    rules.insert(libc::SYS_personality, personality?);
    rules.insert(libc::SYS_clone, vec![only(0, Op::MaskedEq(NAMESPACE_FLAGS), 0)?]);
    // Allowed by this filter, so that the other one can answer.
    rules.insert(libc::SYS_clone3, Vec::new());
    for (capability, numbers) in BY_CAPABILITY {
        if capabilities.contains(*capability) {
            rules.extend(numbers.iter().map(|&number| (number, Vec::new())));
        }
    }
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let list = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?;
    let mut programs = Vec::new();
    if !capabilities.contains("SYS_ADMIN") {
        let absent = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let clone3 = SeccompFilter::new(rules, SeccompAction::Allow, absent, arch)?;
        programs.push(BpfProgram::try_from(clone3)?);
    }
    programs.push(BpfProgram::try_from(list)?);
    Ok(Seccomp(programs))
}

fn only(argument: u8, op: Op, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, op, value)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_add_to_the_list() {
        let none = build(&BTreeSet::new()).unwrap();
        let admin = build(&BTreeSet::from(["SYS_ADMIN".to_owned()])).unwrap();
        assert_eq!(none.0.len(), 2);
        assert_eq!(admin.0.len(), 1);
        assert!(admin.0[0].len() > none.0[1].len());
        // The kernel takes at most 4096 instructions.
        assert!(admin.0[0].len() < 4096);
    }
}
