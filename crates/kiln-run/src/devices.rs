//! Which devices an instance may open or make: a list that the kernel holds for its control group,
//! whatever capabilities it has and wherever a node comes from.
//!
//! On cgroup2 the list is a small BPF program, which needs neither a compiler nor a library; where
//! the kernel takes none, the v1 devices controller does the same.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

/// Character devices that may be opened and made: major and minor numbers.
/// Source: runc `libcontainer/specconv`, without the host's console and what containers bind.
const ALLOWED: [(u32, u32); 8] = [
    (0, 0), // no device: the whiteout of an overlay
    (1, 3), // null
    (1, 5), // zero
    (1, 7), // full
    (1, 8), // random
    (1, 9), // urandom
    (5, 0), // tty
    (5, 2), // ptmx
];
/// Major numbers of terminals, which are their devpts' own.
const TERMINALS: (u32, u32) = (136, 143);

/// What a group may do with devices that are not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// Nothing.
    Refused,
    /// Make their nodes, which are dead: a step may put them into its image.
    Made,
}

/// What is written to `devices.allow` of the v1 controller.
pub(crate) fn lines(others: Others) -> Vec<String> {
    let one = ALLOWED.iter().map(|(major, minor)| format!("c {major}:{minor} rwm"));
    let terminals = (TERMINALS.0..=TERMINALS.1).map(|major| format!("c {major}:* rwm"));
    let any = (others == Others::Made).then_some(["c *:* m".to_owned(), "b *:* m".to_owned()]);
    one.chain(terminals).chain(any.into_iter().flatten()).collect()
}

/// Has the kernel hold the list for the cgroup2 group `group` and all below it, beside whatever
/// others have attached there.
pub(crate) fn hold_for(group: BorrowedFd<'_>, others: Others) -> io::Result<()> {
    match LOADED.get().filter(|_| others == Others::Refused) {
        Some(loaded) => attach(loaded, group),
        None => attach(&load(&program(others))?, group),
    }
}

/// The list of instances, as the kernel holds it.
static LOADED: OnceLock<OwnedFd> = OnceLock::new();

/// Has the kernel look through the list of instances now, once for all processes that are forked
/// from this one. A kernel that takes none says so when the list is to hold.
pub(crate) fn load_beforehand() {
    if let Ok(loaded) = load(&program(Others::Refused)) {
        let _ = LOADED.set(loaded);
    }
}

/// As [`hold_for`], for a group above those of instances, once: a program that may call bpf(2) can
/// take the list off its own group, but does not reach one above.
pub(crate) fn hold_above(group: BorrowedFd<'_>) -> io::Result<()> {
    if attached(group)? > 0 { Ok(()) } else { hold_for(group, Others::Made) }
}

/// One instruction. Source: linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x57;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;
const SHIFT_RIGHT: u8 = 0x77;
const EXIT: u8 = 0x95;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_GREATER: u8 = 0x25;
const JUMP_LESS: u8 = 0xa5;

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const MAJOR: u8 = 3;
const MINOR: u8 = 4;
const ACCESS: u8 = 5;
/// In the low half of the context's first word, whose high half says what is to be done.
const CHARACTER: i32 = 2;
/// To make a node, and neither to read nor to write.
const MAKE: u32 = 1;

fn program(others: Others) -> Vec<Instruction> {
    let load = |to: u8, offset: i16| Instruction {
        code: LOAD_WORD,
        registers: CONTEXT << 4 | to,
        offset,
        immediate: 0,
    };
    let with = |code: u8, register: u8, value: u32, offset: i16| Instruction {
        code,
        registers: register,
        offset,
        immediate: value.cast_signed(),
    };
    let answer = |value: u32| [with(MOVE, RESULT, value, 0), with(EXIT, 0, 0, 0)];
    let mut out = vec![load(KIND, 0), load(MAJOR, 4), load(MINOR, 8)];
    if others == Others::Made {
        let registers = KIND << 4 | ACCESS;
        out.push(Instruction { code: COPY, registers, offset: 0, immediate: 0 });
        out.push(with(SHIFT_RIGHT, ACCESS, 16, 0));
        out.push(with(JUMP_NOT_EQUAL, ACCESS, MAKE, 2));
        out.extend(answer(1));
    }
    out.push(with(AND, KIND, 0xffff, 0));
    out.push(with(JUMP_NOT_EQUAL, KIND, CHARACTER.cast_unsigned(), 0));
    let refuse_others = out.len() - 1;
    for (major, minor) in ALLOWED {
        out.push(with(JUMP_NOT_EQUAL, MAJOR, major, 3));
        out.push(with(JUMP_NOT_EQUAL, MINOR, minor, 2));
        out.extend(answer(1));
    }
    out.push(with(JUMP_LESS, MAJOR, TERMINALS.0, 3));
    out.push(with(JUMP_GREATER, MAJOR, TERMINALS.1, 2));
    out.extend(answer(1));
    out[refuse_others].offset = i16::try_from(out.len() - refuse_others - 1).unwrap_or(i16::MAX);
    out.extend(answer(0));
    out
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_QUERY: i32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Without it, no group below could have a program of its own.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` for loading; what is not named is zero.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr().addr() as u64,
        license: c"".as_ptr().addr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes are of the size that is passed, and they, the instructions and the
    // terminated license live through the call, which only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            std::mem::size_of::<LoadAttributes>(),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel made a new descriptor, close-on-exec, which nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many such programs `group` itself has.
fn attached(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut attributes = QueryAttributes {
        target: group.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        ..QueryAttributes::default()
    };
    // SAFETY: the attributes are of the size that is passed and live through the call, which
    // writes the count into them; it is told that there is no room for ids.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attributes,
            std::mem::size_of::<QueryAttributes>(),
        )
    };
    if done == 0 { Ok(attributes.count) } else { Err(io::Error::last_os_error()) }
}

fn attach(program: &OwnedFd, group: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: as in `load`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            std::mem::size_of::<AttachAttributes>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program the way the kernel does.
    fn allows(others: Others, access: u32, (kind, major, minor): (u32, u32, u32)) -> bool {
        let program = program(others);
        let context = [kind | access << 16, major, minor];
        let mut registers = [0_u64; 6];
        let mut at = 0_usize;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let to = usize::from(pair & 15);
            let value = u64::from(immediate.cast_unsigned());
            at += 1;
            let taken = match code {
                LOAD_WORD => {
                    registers[to] = u64::from(context[usize::try_from(offset).unwrap() / 4]);
                    false
                }
                AND => {
                    registers[to] &= value;
                    false
                }
                MOVE => {
                    registers[to] = value;
                    false
                }
                COPY => {
                    registers[to] = registers[usize::from(pair >> 4)];
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= value;
                    false
                }
                EXIT => return registers[0] == 1,
                JUMP_NOT_EQUAL => registers[to] != value,
                JUMP_GREATER => registers[to] > value,
                JUMP_LESS => registers[to] < value,
                other => panic!("{other:#x}"),
            };
            if taken {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    #[test]
    fn only_what_is_on_the_list() {
        const BLOCK: u32 = 1;
        const CHAR: u32 = 2;
        for (kind, major, minor, expected) in [
            (CHAR, 1, 3, true),
            (CHAR, 1, 9, true),
            (CHAR, 5, 0, true),
            (CHAR, 5, 2, true),
            (CHAR, 136, 77, true),
            (CHAR, 143, 0, true),
            (CHAR, 0, 0, true),
            (CHAR, 1, 1, false),    // mem
            (CHAR, 1, 11, false),   // kmsg
            (CHAR, 5, 1, false),    // the host's console
            (CHAR, 135, 0, false),  // below the terminals
            (CHAR, 144, 0, false),  // above them
            (CHAR, 10, 229, false), // fuse
            (CHAR, 10, 237, false), // loop-control
            (BLOCK, 1, 3, false),
            (BLOCK, 8, 0, false),
            (BLOCK, 254, 0, false),
        ] {
            let device = (kind, major, minor);
            for access in 1..=7 {
                let named = format!("{access} of {device:?}");
                assert_eq!(allows(Others::Refused, access, device), expected, "{named}");
                assert_eq!(
                    allows(Others::Made, access, device),
                    expected || access == 1,
                    "{named}"
                );
            }
        }
    }
}
