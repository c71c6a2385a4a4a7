//! The seccomp filter: an allow-list equal to Docker's default profile, or stricter.
//!
//! Where it is stricter: no 32-bit system calls (the process is killed), no `io_uring`. What is
//! refused answers EPERM, but for `clone3`, which answers ENOSYS so that C libraries fall back to
//! `clone`, whose flags can be seen, and calls that are younger than the list, likewise.
//!
//! The program is a binary search over ranges, about 250 instructions. `seccompiler`'s own
//! compiler makes a chain of 1,500, and the kernel runs through a filter once for every number
//! when it is installed: 1.1 ms of each start. It stays as the installer, and as the oracle that
//! the tests compare with.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{BpfProgram, sock_filter};

use super::syscalls::{BY_CAPABILITY, COMMON, LEGACY, RECENT};
use crate::error::Fault;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

/// Values of `personality` that change nothing of security: Linux, with and without the
/// compatibility bits, and "ask".
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// What sockets may be of: UNIX, INET, INET6, NETLINK, PACKET. All others are old and little
/// looked at, or lead out: ALG writes to shared page caches (CVE-2026-31431), VSOCK reaches the
/// hypervisor.
const FAMILIES: [u32; 5] = [1, 2, 10, 16, 17];

/// The youngest call that the list knows of, allowed or not: `removexattrat`, Linux 6.13.
const YOUNGEST: u32 = 466;
/// Numbers of the x32 ABI begin here.
const X32: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const AUDIT_ARCH: u32 = 0xc000_00f3;

// Offsets in struct seccomp_data; the low half of an argument on a little-endian machine.
const DATA_NUMBER: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGUMENT_0: u32 = 16;

// Source: linux/bpf_common.h, linux/seccomp.h.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Refuse,
    /// As if this kernel had no such call.
    Unknown,
    /// Allowed without flags that make namespaces.
    Clone,
    /// Allowed for [`FAMILIES`]; others answer as if this kernel had none such.
    Socket,
    Personality,
}

/// A compiled filter.
#[derive(Debug)]
pub(crate) struct Seccomp(BpfProgram);

impl Seccomp {
    /// The filter for a process with `capabilities` (without `CAP_`).
    pub(crate) fn compile(capabilities: &BTreeSet<String>) -> Self {
        let mut program = vec![
            instruction(LOAD, DATA_ARCH),
            jump(JUMP_EQUAL, AUDIT_ARCH, 1, 0),
            instruction(RETURN, KILL),
            instruction(LOAD, DATA_NUMBER),
        ];
        program.extend(search(&ranges(&verdicts(capabilities))));
        Self(program)
    }

    /// Installs the filter. `no_new_privs` must be on, and nothing that it refuses is needed
    /// afterwards.
    pub(crate) fn install(&self) -> Result<(), Fault> {
        seccompiler::apply_filter(&self.0)
            .map_err(|error| Fault::new("install the seccomp filter", error))
    }
}

fn verdicts(capabilities: &BTreeSet<String>) -> BTreeMap<u32, Verdict> {
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(X32);
    let mut verdicts: BTreeMap<u32, Verdict> = COMMON
        .iter()
        .chain(LEGACY)
        .chain(RECENT)
        .map(|&call| (number(call), Verdict::Allow))
        .collect();
    verdicts.insert(number(libc::SYS_clone), Verdict::Clone);
    verdicts.insert(number(libc::SYS_clone3), Verdict::Unknown);
    verdicts.insert(number(libc::SYS_socket), Verdict::Socket);
    verdicts.insert(number(libc::SYS_socketpair), Verdict::Socket);
    verdicts.insert(number(libc::SYS_personality), Verdict::Personality);
    for (capability, calls) in BY_CAPABILITY {
        if capabilities.contains(*capability) {
            verdicts.extend(calls.iter().map(|&call| (number(call), Verdict::Allow)));
        }
    }
    verdicts
}

/// The first number of each range, and what holds in it.
fn ranges(verdicts: &BTreeMap<u32, Verdict>) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut begin = |first: u32, verdict: Verdict| match ranges.last() {
        Some((_, last)) if *last == verdict => {}
        _ => ranges.push((first, verdict)),
    };
    for number in 0..=YOUNGEST {
        begin(number, verdicts.get(&number).copied().unwrap_or(Verdict::Refuse));
    }
    begin(YOUNGEST + 1, Verdict::Unknown);
    begin(X32, Verdict::Refuse);
    ranges
}

/// Instructions that find the range of the loaded number. Each way through them ends in a return.
fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    match ranges {
        [] => vec![instruction(RETURN, KILL)],
        [(_, verdict)] => leaf(*verdict),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (below, above) = (search(low), search(high));
            let mut out = match u8::try_from(below.len()) {
                Ok(skip) => vec![jump(JUMP_AT_LEAST, high[0].0, skip, 0)],
                // A conditional jump reaches 255 instructions.
                Err(_) => vec![
                    jump(JUMP_AT_LEAST, high[0].0, 0, 1),
                    instruction(JUMP, u32::try_from(below.len()).unwrap_or(u32::MAX)),
                ],
            };
            out.extend(below);
            out.extend(above);
            out
        }
    }
}

fn leaf(verdict: Verdict) -> Vec<sock_filter> {
    let allow = instruction(RETURN, ALLOW);
    let refuse = instruction(RETURN, ERRNO | libc::EPERM.cast_unsigned());
    let argument = instruction(LOAD, DATA_ARGUMENT_0);
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Refuse => vec![refuse],
        Verdict::Unknown => vec![instruction(RETURN, ERRNO | libc::ENOSYS.cast_unsigned())],
        Verdict::Clone => vec![argument, jump(JUMP_ANY_BIT, NAMESPACE_FLAGS, 0, 1), refuse, allow],
        Verdict::Socket => {
            let none = instruction(RETURN, ERRNO | libc::EAFNOSUPPORT.cast_unsigned());
            one_of(&FAMILIES, &allow, none)
        }
        Verdict::Personality => one_of(&PERSONALITIES, &allow, refuse),
    }
}

/// `allow` if the first argument is one of `values`.
fn one_of(values: &[u32], allow: &sock_filter, otherwise: sock_filter) -> Vec<sock_filter> {
    let mut out = vec![instruction(LOAD, DATA_ARGUMENT_0)];
    for value in values {
        out.extend([jump(JUMP_EQUAL, *value, 0, 1), allow.clone()]);
    }
    out.push(otherwise);
    out
}

fn instruction(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    /// Runs a program the way the kernel does.
    fn run(program: &[sock_filter], number: u32, arch: u32, argument: u32) -> u32 {
        let (mut at, mut register) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let mut choose = |yes: bool| at += usize::from(if yes { jt } else { jf });
            match code {
                LOAD => {
                    register = match k {
                        DATA_NUMBER => number,
                        DATA_ARCH => arch,
                        DATA_ARGUMENT_0 => argument,
                        _ => 0,
                    }
                }
                JUMP => at += k as usize,
                JUMP_EQUAL => choose(register == k),
                0x25 => choose(register > k),
                JUMP_AT_LEAST => choose(register >= k),
                JUMP_ANY_BIT => choose(register & k != 0),
                // and with a constant
                0x54 => register &= k,
                RETURN => return k,
                other => panic!("{other:#x}"),
            }
        }
    }

    /// The same list through the library's compiler.
    fn oracle(capabilities: &BTreeSet<String>) -> BpfProgram {
        let only = |op, value: u32| {
            let condition =
                SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, u64::from(value)).unwrap();
            SeccompRule::new(vec![condition]).unwrap()
        };
        let rules = verdicts(capabilities)
            .into_iter()
            .filter(|(_, verdict)| !matches!(verdict, Verdict::Unknown | Verdict::Refuse))
            .map(|(number, verdict)| {
                let rules = match verdict {
                    Verdict::Clone => {
                        vec![only(SeccompCmpOp::MaskedEq(u64::from(NAMESPACE_FLAGS)), 0)]
                    }
                    Verdict::Socket => FAMILIES.map(|value| only(SeccompCmpOp::Eq, value)).to_vec(),
                    Verdict::Personality => {
                        PERSONALITIES.map(|value| only(SeccompCmpOp::Eq, value)).to_vec()
                    }
                    _ => Vec::new(),
                };
                (i64::from(number), rules)
            })
            .collect();
        let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let refuse = SeccompAction::Errno(1);
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch).unwrap().try_into().unwrap()
    }

    #[test]
    fn says_what_the_librarys_program_says() {
        for capabilities in [
            BTreeSet::new(),
            BTreeSet::from(["SYS_ADMIN".to_owned()]),
            BTreeSet::from(["SYS_CHROOT".to_owned(), "SYS_TIME".to_owned(), "BPF".to_owned()]),
        ] {
            let ours = Seccomp::compile(&capabilities).0;
            let theirs = oracle(&capabilities);
            let clone3 = u32::try_from(libc::SYS_clone3).unwrap();
            let sockets = [libc::SYS_socket, libc::SYS_socketpair];
            let sockets = sockets.map(|call| u32::try_from(call).unwrap());
            for number in (0..YOUNGEST + 1).chain([X32, X32 + 1, u32::MAX]) {
                for argument in [0, 1, 8, 10, 38, 40, 0x1000_0000, 0x2_0000, 0x100, u32::MAX] {
                    let ours = run(&ours, number, AUDIT_ARCH, argument);
                    let theirs = run(&theirs, number, AUDIT_ARCH, argument);
                    if number == clone3 && !capabilities.contains("SYS_ADMIN") {
                        assert_eq!(ours, ERRNO | 38);
                    } else if sockets.contains(&number) && theirs != ALLOW {
                        assert_eq!(ours, ERRNO | 97, "{number} {argument:#x}");
                    } else {
                        assert_eq!(ours, theirs, "{number} {argument:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn is_short_and_closed() {
        let program = Seccomp::compile(&BTreeSet::new()).0;
        assert!(program.len() < 400, "{}", program.len());
        let call = |number: libc::c_long, argument| {
            run(&program, u32::try_from(number).unwrap(), AUDIT_ARCH, argument)
        };
        for (family, expected) in
            [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (17, ALLOW), (38, ERRNO | 97)]
        {
            assert_eq!(call(libc::SYS_socket, family), expected, "{family}");
        }
        for family in [0, 21, 29, 30, 31, 40, 44, u32::MAX] {
            assert_ne!(call(libc::SYS_socket, family), ALLOW, "{family}");
        }
        // Asynchronous I/O and looking at mounts, as in newer Dockers.
        for allowed in [333, 457, 458] {
            if cfg!(target_arch = "x86_64") {
                assert_eq!(call(allowed, 0), ALLOW, "{allowed}");
            }
        }
        let mount = u32::try_from(libc::SYS_mount).unwrap();
        assert_eq!(run(&program, mount, AUDIT_ARCH, 0), ERRNO | 1);
        assert_eq!(run(&program, YOUNGEST + 1, AUDIT_ARCH, 0), ERRNO | 38);
        assert_eq!(run(&program, 0, 0x4000_0003, 0), KILL);
        assert_eq!(run(&program, 0, AUDIT_ARCH, 0), ALLOW);
    }
}
