//! The few system calls that no library wraps, each in a function that cannot be misused by the
//! single-threaded callers here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::mount::MountAttrFlags;

/// What `clone3` made of the caller.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// This is the new process.
    Child,
    /// This is still the caller.
    Parent {
        /// The new process, in the caller's pid namespace.
        pid: i32,
        /// Refers to it for as long as it is open.
        pidfd: OwnedFd,
    },
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks with namespace `flags`, straight into the cgroup2 group `cgroup`.
///
/// The calling process must have one thread: the child goes on with Rust code that allocates.
pub(crate) fn clone_into(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    debug_assert_eq!(threads(), 1, "clone from a process with threads");
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        // The sign bit of a c_int flag (CLONE_IO) must not spread.
        flags: u64::from(flags.cast_unsigned()) | CLONE_PIDFD,
        pidfd: (&raw mut pidfd).addr() as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of the whole address space
    // and, the caller having one thread, no lock is held by anybody else. `args` is of the size
    // that is passed and outlives the call; `pidfd` is written by the kernel in the parent.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<CloneArgs>())
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: i32::try_from(pid).unwrap_or(i32::MAX), pidfd })
        }
    }
}

/// Number of threads of this process, by `/proc`; 1 where that cannot be read.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// `mount_setattr(2)`: sets `attrs` and makes the mount private; `recursive` for all below it.
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    attrs: MountAttrFlags,
    recursive: bool,
) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attr = MountAttr {
        set: u64::from(attrs.bits()),
        clear: 0,
        propagation: libc::MS_PRIVATE,
        userns: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a terminated empty string, `attr` is of the size that is passed, and
    // both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            std::mem::size_of::<MountAttr>(),
        )
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From now on, children of this process are in a time namespace of their own, whose clocks can
/// be set until the first of them is there.
pub(crate) fn unshare_time() -> io::Result<()> {
    const CLONE_NEWTIME: i32 = 0x80;
    // SAFETY: changes a property of the calling task only, and touches no memory.
    if unsafe { libc::unshare(CLONE_NEWTIME) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has this process run before all ordinary ones, and its children not. Where the kernel does not
/// let it, it runs as others do.
pub(crate) fn run_first() {
    const SCHED_RESET_ON_FORK: i32 = 0x4000_0000;
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the struct lives through the calls, which change nothing but the scheduling.
    unsafe {
        if libc::sched_setscheduler(0, libc::SCHED_RR | SCHED_RESET_ON_FORK, &raw const param) != 0
        {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
    }
}

/// Ordinary scheduling: no policy, nice value or priority of input and output of its own.
pub(crate) fn plain_scheduling() {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the struct lives through the call; none of the calls touches other memory. Refused,
    // they leave the process as it was.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const param);
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        const IOPRIO_WHO_PROCESS: libc::c_int = 1;
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_DEFAULT, std::ptr::null::<u64>(), 0);
    }
}

/// Nothing is blocked, and nothing ignored but SIGPIPE, as Rust has it; handlers stay.
pub(crate) fn plain_signals() {
    // The kernel's own structure begins with the handler and is four words long at most; all zero
    // it says SIG_DFL. The C library keeps two signals from its own functions.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        let mut now = [0_u64; 4];
        // SAFETY: both arrays are as long as the structure and outlive the calls; SIG_DFL installs
        // no code.
        unsafe {
            let (none, set) = (std::ptr::null::<u64>(), default.as_ptr());
            libc::syscall(libc::SYS_rt_sigaction, signal, none, now.as_mut_ptr(), 8);
            if now[0] == libc::SIG_IGN as u64 && signal != libc::SIGPIPE {
                libc::syscall(libc::SYS_rt_sigaction, signal, set, std::ptr::null::<u64>(), 8);
            }
        }
    }
    // SAFETY: as in `reset_signals`.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// What else a task carries through fork and exec: personality, groups, and the kernel's switches
/// for huge pages, merged pages, memory errors and speculation.
pub(crate) fn plain_task() {
    const PR_SET_MEMORY_MERGE: libc::c_int = 67;
    // SAFETY: numbers only; the list of groups is empty. Refused, they change nothing.
    unsafe {
        libc::personality(0);
        libc::setgroups(0, std::ptr::null());
        if libc::geteuid() == 0 {
            libc::setresgid(0, 0, 0);
        }
        libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_CLEAR, 0, 0, 0);
        libc::prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0);
        for what in [0, 1] {
            const PR_SET_SPECULATION_CTRL: libc::c_int = 53;
            const PR_SPEC_ENABLE: libc::c_ulong = 2;
            libc::prctl(PR_SET_SPECULATION_CTRL, what as libc::c_ulong, PR_SPEC_ENABLE, 0, 0);
        }
    }
}

/// Takes a variable out of the environment.
pub(crate) fn forget_variable(name: &std::ffi::OsStr) {
    debug_assert_eq!(threads(), 1, "the environment changes under other threads");
    // SAFETY: this process has one thread, so nobody reads the environment meanwhile.
    unsafe { std::env::remove_var(name) };
}

/// How many processes of this machine were killed for want of memory since it started.
pub(crate) fn out_of_memory_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Bytes of this machine's memory that could be had without swapping: proc_meminfo(5).
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn cloexec_from(first: i32) {
    // SAFETY: changes descriptor flags only. An old kernel answers ENOSYS, which is harmless: all
    // descriptors of Rust are close-on-exec already.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        );
    }
}

/// Closes every descriptor from 3 on but `kept`, for a process that goes on without the owners of
/// all others: none of them may be dropped or used afterwards.
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    numbers.retain(|number| *number > 2);
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        if number > first {
            close(first, number - 1);
        }
        first = number.max(first - 1) + 1;
    }
    close(first, libc::c_uint::MAX);

    fn close(first: u32, last: u32) {
        // SAFETY: called by processes that were just cloned, which never again touch a value that
        // owns one of them: they end by exec or by `exit_now`.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if done != 0 {
            // Before 5.9.
            for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
                let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
                if let Some(number) = number.filter(|number| (first..=last).contains(number)) {
                    // SAFETY: as above.
                    unsafe { libc::close(number.cast_signed()) };
                }
            }
        }
    }
}

/// A child of this process's parent, in the pid namespace that this process has joined, by the
/// call that the seccomp filter lets through: 0 in the child.
pub(crate) fn fork_sibling() -> io::Result<i32> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is fork(2), and this process has one thread, see `clone_into`;
    // no stack, tid or TLS is given, in whatever order this architecture takes them.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).unwrap_or(i32::MAX)),
    }
}

/// Plain fork(2), for where the seccomp filter hides `clone3`: 0 in the child.
pub(crate) fn fork() -> io::Result<i32> {
    // SAFETY: this process has one thread, see `clone_into`.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Gives every signal its default action and unblocks all: what a program expects at its exec.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL installs no code. KILL, STOP and glibc's own are refused, as they may.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: a zeroed sigset_t is then initialised by sigemptyset, and only this thread's mask
    // changes.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Blocks all signals, so that [`next_signal`] can take them one at a time.
pub(crate) fn block_signals() {
    // SAFETY: as in `reset_signals`.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Waits for one of the signals that [`block_signals`] blocked.
pub(crate) fn next_signal() -> i32 {
    // SAFETY: the set is initialised by sigfillset; no siginfo is asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&raw const all, std::ptr::null_mut())
    }
}

/// Blocks `signal` and makes it readable instead: a descriptor that `poll` wakes for.
pub(crate) fn signal_fd(signal: i32) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset; only this thread's mask changes; the new
    // descriptor has no other owner.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Gives `signal` its default action.
pub(crate) fn default_signal(signal: i32) {
    // SAFETY: SIG_DFL installs no code.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Has `/proc/PID/cmdline` of this process say `words`, as far as there is room: in place of those
/// that it was started with, which nobody may look at afterwards.
pub(crate) fn set_command_line(words: &[&[u8]]) {
    // Source: proc_pid_stat(5), fields 48 and 49; the second one may hold anything.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
    let mut fields = fields.skip(45).map_while(|field| field.trim().parse::<usize>().ok());
    let (Some(start), Some(end)) = (fields.next(), fields.next()) else { return };
    let Some(room) = end.checked_sub(start + 1) else { return };
    let mut text: Vec<u8> =
        words.iter().flat_map(|word| word.iter().chain(&[0])).copied().collect();
    text.truncate(room);
    // SAFETY: the kernel put the words there, in this process's own stack, and says how far they
    // go; the text is shorter. Rust gives copies of them to whoever asks, and keeps no reference.
    unsafe {
        let at = std::ptr::with_exposed_provenance_mut::<u8>(start);
        at.write_bytes(0, room + 1);
        at.copy_from_nonoverlapping(text.as_ptr(), text.len());
    }
}

/// Ignores `signal`.
pub(crate) fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN installs no code.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Plain `kill(2)`.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: touches no memory.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends `signal`, any number from 1 to 64, to the process of `pidfd`.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo means the same as kill(2).
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How a process ended: its code, or the signal that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
}

/// Reaps the child of `pidfd`, waiting for it.
pub(crate) fn wait_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<Ended> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    loop {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                return Ok(match status.terminating_signal() {
                    Some(signal) => Ended { code: 128 + signal, signal: Some(signal) },
                    None => Ended { code: status.exit_status().unwrap_or(255), signal: None },
                });
            }
            Ok(None) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sets up `lo` in the calling process's network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: an all-zero ifreq is valid, its name field takes the two bytes and stays
    // terminated, and the kernel reads the member that belongs to the request.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the terminal on descriptor 0 the controlling one of this session.
pub(crate) fn controlling_terminal() -> io::Result<()> {
    // SAFETY: the request takes a plain number.
    if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Replaces the program. Returns only when that failed.
pub(crate) fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer, and they and the texts they point to live
    // until the call returns, which it does only when it failed.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process without running anything of the parent's that was copied into it.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns; no handlers run.
    unsafe { libc::_exit(code) }
}

/// Puts `fd` at the number `to`, without close-on-exec.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, to: i32) -> io::Result<()> {
    if fd.as_raw_fd() == to {
        return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(Into::into);
    }
    // SAFETY: `to` is one of 0, 1, 2, which no owner in these processes closes.
    if unsafe { libc::dup2(fd.as_raw_fd(), to) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `/dev/null`, for reading and writing.
pub(crate) fn null() -> io::Result<OwnedFd> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

/// Takes standard output for a purpose of its own; `/dev/null` stays in its place.
pub(crate) fn take_output() -> io::Result<OwnedFd> {
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    dup_to(null()?.as_fd(), 1)?;
    Ok(output)
}

/// Takes standard input, as [`take_output`] does the other.
pub(crate) fn take_input() -> io::Result<OwnedFd> {
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    dup_to(null()?.as_fd(), 0)?;
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaps_by_pidfd() {
        #[expect(clippy::zombie_processes, reason = "reaped by what is tested")]
        let child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(wait_pidfd(pidfd.as_fd()).unwrap(), Ended { code: 0, signal: None });
    }
}
