//! Which devices an instance may open or make: a list that the kernel holds for its control group,
//! whatever capabilities it has and wherever a node comes from.
//!
//! On cgroup2 the list is a small BPF program, which needs neither a compiler nor a library; where
//! the kernel takes none, the v1 devices controller does the same.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, major, minor, openat2};
use rustix::io::Errno;

use crate::spec::Device;

/// Opens the node of a device of the host, without opening the device: exactly `path`, over no link.
pub(crate) fn node(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Which device a node is: whether one of blocks, its major and its minor number. `None`: it is none.
pub(crate) fn number(node: &OwnedFd) -> rustix::io::Result<Option<(bool, u32, u32)>> {
    let stat = fstat(node)?;
    let block = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => true,
        FileType::CharacterDevice => false,
        _ => return Ok(None),
    };
    Ok(Some((block, major(stat.st_rdev), minor(stat.st_rdev))))
}

/// Looks what the device at `path` of the host is. `None`: there is none.
///
/// # Errors
/// Why what is there is no device, in words.
pub fn look(path: &Path) -> Result<Option<(bool, u32, u32)>, String> {
    let link = || match std::fs::canonicalize(path) {
        Ok(real) => format!("is a link, or a link is on the way to it: name {}", real.display()),
        Err(_) => "is a link, or a link is on the way to it".to_owned(),
    };
    let cannot = |error: Errno| format!("cannot be looked at: {error}");
    let node = match node(path) {
        Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(Errno::LOOP) => return Err(link()),
        node => node.map_err(cannot)?,
    };
    match number(&node).map_err(cannot)? {
        Some(number) => Ok(Some(number)),
        // The last of the way is opened as it is.
        None if is_link(&node) => Err(link()),
        None => Err("is there and is no device".to_owned()),
    }
}

fn is_link(node: &OwnedFd) -> bool {
    fstat(node).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink())
}

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
pub(crate) fn lines(others: Others, devices: &[Device]) -> Vec<String> {
    let one = ALLOWED.iter().map(|(major, minor)| format!("c {major}:{minor} rwm"));
    let terminals = (TERMINALS.0..=TERMINALS.1).map(|major| format!("c {major}:* rwm"));
    let any = (others == Others::Made).then_some(["c *:* m".to_owned(), "b *:* m".to_owned()]);
    let own = devices.iter().map(|Device { block, major, minor, access, .. }| {
        format!("{} {major}:{minor} {access}", if *block { 'b' } else { 'c' })
    });
    one.chain(terminals).chain(any.into_iter().flatten()).chain(own).collect()
}

/// Has the kernel hold the list for the cgroup2 group `group` and all below it, beside whatever
/// others have attached there.
pub(crate) fn hold_for(
    group: BorrowedFd<'_>,
    others: Others,
    devices: &[Device],
) -> io::Result<()> {
    match LOADED.get().filter(|_| others == Others::Refused && devices.is_empty()) {
        Some(loaded) => attach(loaded, group, None),
        None => attach(&load(&program(others, devices))?, group, None),
    }
}

/// The list of instances, as the kernel holds it.
static LOADED: OnceLock<OwnedFd> = OnceLock::new();

/// Has the kernel look through the list of instances now, once for all processes that are forked
/// from this one. A kernel that takes none says so when the list is to hold.
pub(crate) fn load_beforehand() {
    if let Ok(loaded) = load(&program(Others::Refused, &[])) {
        let _ = LOADED.set(loaded);
    }
}

/// As [`hold_for`], for a group above those of instances, once: a program that may call bpf(2) can
/// take the list off its own group, but does not reach one above.
pub(crate) fn hold_above(group: BorrowedFd<'_>) -> io::Result<()> {
    if attached(group)?.is_empty() { hold_for(group, Others::Made, &[]) } else { Ok(()) }
}

/// Has the list of such a group, which is nobody's but this root's, let through these devices and no
/// others: those of all instances that have any.
pub(crate) fn allow_above(group: BorrowedFd<'_>, devices: &[Device]) -> io::Result<()> {
    let fresh = load(&program(Others::Made, devices))?;
    let mut old = attached(group)?.into_iter();
    let first = old.next().map(by_id).transpose()?;
    attach(&fresh, group, first.as_ref())?;
    // One that a shim attached at the same moment.
    for id in old {
        detach(&by_id(id)?, group)?;
    }
    Ok(())
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
const CHARACTER: u32 = 2;
const BLOCK: u32 = 1;
/// To make a node, and neither to read nor to write.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MAKE | READ | WRITE;

fn mask(access: &str) -> u32 {
    let bits = [('m', MAKE), ('r', READ), ('w', WRITE)];
    bits.iter().filter(|(letter, _)| access.contains(*letter)).map(|(_, bit)| bit).sum()
}

fn program(others: Others, devices: &[Device]) -> Vec<Instruction> {
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
    let copy = |from: u8, to: u8| Instruction {
        code: COPY,
        registers: from << 4 | to,
        offset: 0,
        immediate: 0,
    };
    out.push(copy(KIND, ACCESS));
    out.push(with(SHIFT_RIGHT, ACCESS, 16, 0));
    if others == Others::Made {
        out.push(with(JUMP_NOT_EQUAL, ACCESS, MAKE, 2));
        out.extend(answer(1));
    }
    out.push(with(AND, KIND, 0xffff, 0));
    for device in devices {
        let mut one = vec![
            with(JUMP_NOT_EQUAL, KIND, if device.block { BLOCK } else { CHARACTER }, 0),
            with(JUMP_NOT_EQUAL, MAJOR, device.major, 0),
            with(JUMP_NOT_EQUAL, MINOR, device.minor, 0),
            copy(ACCESS, RESULT),
            with(AND, RESULT, ALL & !mask(&device.access), 0),
            with(JUMP_NOT_EQUAL, RESULT, 0, 0),
        ];
        one.extend(answer(1));
        let length = one.len();
        for (at, instruction) in one.iter_mut().enumerate() {
            if instruction.code == JUMP_NOT_EQUAL {
                instruction.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
            }
        }
        out.extend(one);
    }
    out.push(with(JUMP_NOT_EQUAL, KIND, CHARACTER, 0));
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
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_PROG_QUERY: i32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Without it, no group below could have a program of its own.
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

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
    replaced: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttributes {
    id: u32,
    next: u32,
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

/// As many as are looked at: there is one, and another one for a moment.
const MOST: usize = 64;

/// The ids of such programs that `group` itself has.
fn attached(group: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST];
    let mut attributes = QueryAttributes {
        target: group.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        ids: ids.as_mut_ptr().addr() as u64,
        count: u32::try_from(MOST).unwrap_or(0),
        ..QueryAttributes::default()
    };
    // SAFETY: the attributes are of the size that is passed and live through the call, which
    // writes the count into them, and at most that many ids into the list, which lives, too.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attributes,
            std::mem::size_of::<QueryAttributes>(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(usize::try_from(attributes.count).unwrap_or(MOST));
    Ok(ids)
}

/// The program that the kernel knows by `id`.
fn by_id(id: u32) -> io::Result<OwnedFd> {
    let attributes = IdAttributes { id, ..IdAttributes::default() };
    // SAFETY: the attributes are of the size that is passed and live through the call, which only
    // reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_FD_BY_ID,
            &raw const attributes,
            std::mem::size_of::<IdAttributes>(),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel made a new descriptor, close-on-exec, which nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Attaches a program beside those that others have attached, or in the place of `old`.
fn attach(program: &OwnedFd, group: BorrowedFd<'_>, old: Option<&OwnedFd>) -> io::Result<()> {
    let replaced = old.map_or(0, |old| old.as_raw_fd().cast_unsigned());
    let flags = if old.is_some() { BPF_F_ALLOW_MULTI | BPF_F_REPLACE } else { BPF_F_ALLOW_MULTI };
    change(BPF_PROG_ATTACH, program, group, flags, replaced)
}

fn detach(program: &OwnedFd, group: BorrowedFd<'_>) -> io::Result<()> {
    change(BPF_PROG_DETACH, program, group, 0, 0)
}

fn change(
    what: i32,
    program: &OwnedFd,
    group: BorrowedFd<'_>,
    flags: u32,
    replaced: u32,
) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags,
        replaced,
    };
    // SAFETY: as in `load`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            what,
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
    fn allows(others: Others, access: u32, device: (u32, u32, u32)) -> bool {
        allows_with(&[], others, access, device)
    }

    fn allows_with(
        devices: &[Device],
        others: Others,
        access: u32,
        (kind, major, minor): (u32, u32, u32),
    ) -> bool {
        let program = program(others, devices);
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
        const CHAR: u32 = CHARACTER;
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

    #[test]
    fn devices_of_its_own_are_let_through_as_far_as_stated() {
        let device = |block, major, minor, access: &str| Device {
            source: "/dev/x".into(),
            target: "/dev/x".to_owned(),
            block,
            major,
            minor,
            access: access.to_owned(),
        };
        let own = [device(false, 10, 229, "rwm"), device(true, 7, 3, "r")];
        for access in 1..=7 {
            let named = access.to_string();
            let let_through = |others, device| allows_with(&own, others, access, device);
            assert!(let_through(Others::Refused, (CHARACTER, 10, 229)), "{named}");
            assert!(let_through(Others::Refused, (CHARACTER, 1, 3)), "{named}");
            assert_eq!(let_through(Others::Refused, (BLOCK, 7, 3)), access == READ, "{named}");
            let made = access == READ || access == MAKE;
            assert_eq!(let_through(Others::Made, (BLOCK, 7, 3)), made, "{named}");
            for other in [(BLOCK, 10, 229), (CHARACTER, 7, 3), (CHARACTER, 10, 228), (BLOCK, 7, 4)]
            {
                assert!(!let_through(Others::Refused, other), "{named} {other:?}");
            }
        }
        let lines = lines(Others::Refused, &own);
        assert!(lines.ends_with(&["c 10:229 rwm".to_owned(), "b 7:3 r".to_owned()]), "{lines:?}");
    }
}
