//! The cases: what is tried, where it was found before, what it is about, and from where it is
//! tried. A name is a word of `probe.c`, or of a test in this folder.

/// What a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Descriptor,
    Link,
    MountTarget,
    Mask,
    Joiner,
    Device,
    Socket,
    Account,
    Terminal,
    Resource,
    Privilege,
}

/// From where it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    Start,
    Exec,
    Check,
    Run,
    Import,
    Fill,
}

/// One way out that somebody found.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// CVE, issue or write-up.
    pub(crate) report: &'static str,
    pub(crate) class: Class,
    pub(crate) entries: &'static [Entry],
}

use Class::{
    Account, Descriptor, Device, Joiner, Link, Mask, MountTarget, Privilege, Resource, Socket,
    Terminal,
};
use Entry::{Check, Exec, Fill, Import, Run, Start};

/// Where a plain program runs.
const ALL: &[Entry] = &[Start, Exec, Check, Run, Import];

const fn case(
    name: &'static str,
    report: &'static str,
    class: Class,
    entries: &'static [Entry],
) -> Case {
    Case { name, report, class, entries }
}

#[rustfmt::skip]
pub(crate) const CASES: &[Case] = &[
    // Tried by `probe all`.
    case("workdir", "CVE-2024-21626 (runc): working directory on the host", Descriptor, ALL),
    case("descriptors", "CVE-2016-9962 (runc), CVE-2015-3627 (libcontainer): inherited descriptors", Descriptor, ALL),
    case("standard-streams", "CVE-2016-9962 (runc): the caller's own files as standard streams", Descriptor, ALL),
    case("binary", "CVE-2019-5736 (runc, LXC): the runtime overwritten through /proc/self/exe", Joiner, ALL),
    case("abstract-sockets", "CVE-2020-15257 (containerd): the shim's abstract socket", Socket, ALL),
    case("socket-alg", "CVE-2026-31431 (Linux; moby#52494): AF_ALG and the page cache", Socket, ALL),
    case("socket-vsock", "moby#44562, containerd#7442: AF_VSOCK reaches the hypervisor", Socket, ALL),
    case("socket-rds", "CVE-2010-3904 (Linux): RDS writes to the kernel", Socket, ALL),
    case("socket-tipc", "CVE-2021-43267 (Linux): TIPC overflows the heap", Socket, ALL),
    case("socket-can", "CVE-2021-3609 (Linux): a race in CAN", Socket, ALL),
    case("socket-bluetooth", "CVE-2020-12351 (Linux): BleedingTooth", Socket, ALL),
    case("socket-nfc", "CVE-2020-25670 (Linux): NFC frees twice", Socket, ALL),
    case("socket-key", "CVE-2022-1353 (Linux): PF_KEY leaks the heap", Socket, ALL),
    case("socketpair-tipc", "CVE-2021-43267 (Linux), by socketpair", Socket, ALL),
    case("sockets-that-are-needed", "what must stay possible", Socket, ALL),
    case("mount", "CVE-2014-9357 and everything since: mounting", Privilege, ALL),
    case("remount", "CVE-2019-16884 (runc): what is masked, remounted", Mask, ALL),
    case("umount", "CVE-2023-25809 (runc): a mask taken off", Mask, ALL),
    case("fsopen", "CVE-2022-0185 (Linux): fsconfig overflows", Privilege, ALL),
    case("open-tree", "moby#43991: the new mount calls", Privilege, ALL),
    case("pivot-root", "CVE-2018-6954 and others: another root", Privilege, ALL),
    case("unshare-user", "CVE-2022-0185, CVE-2023-0386 (Linux): all by a user namespace", Privilege, ALL),
    case("unshare-mount", "CVE-2022-0492 (Linux): by a mount namespace", Privilege, ALL),
    case("unshare-cgroup", "CVE-2022-0492 (Linux): release_agent", Privilege, ALL),
    case("clone-user", "CVE-2022-0185 (Linux), by clone", Privilege, ALL),
    case("clone3-user", "moby#42681: clone3 hides its flags", Privilege, ALL),
    case("setns", "CVE-2016-8649 (LXC): into another namespace", Joiner, ALL),
    case("open-by-handle", "Shocker (2014): files by their handles", Privilege, ALL),
    case("io-uring", "moby#46762: io_uring goes around the filter", Privilege, ALL),
    case("bpf", "CVE-2020-8835 (Linux): bpf's verifier", Privilege, ALL),
    case("perf-event", "CVE-2013-2094 (Linux): perf_event_open", Privilege, ALL),
    case("userfaultfd", "CVE-2021-22555 (Linux): won races by userfaultfd", Privilege, ALL),
    case("keyctl", "CVE-2016-0728 (Linux): keyrings have no namespace", Privilege, ALL),
    case("add-key", "CVE-2014-9529 (Linux): keyrings have no namespace", Privilege, ALL),
    case("init-module", "moby#11946: modules", Privilege, ALL),
    case("kexec", "Docker's list: another kernel", Privilege, ALL),
    case("iopl", "Docker's list: ports of the machine", Privilege, ALL),
    case("acct", "Docker's list: accounting without end", Resource, ALL),
    case("swapon", "Docker's list: swap", Resource, ALL),
    case("settime", "Docker's list: the machine's clock", Privilege, ALL),
    case("quotactl", "Docker's list: quotas of the host", Resource, ALL),
    case("vm86-personality", "moby#20634: ASLR off", Privilege, ALL),
    case("fanotify", "CVE-2019-11815 class: fanotify sees the host's files", Privilege, ALL),
    case("lookup-dcookie", "Docker's list: names of the host's files", Privilege, ALL),
    case("syslog", "Docker's list: the kernel's log", Privilege, ALL),
    case("32-bit-calls", "moby#52494: socketcall goes around the filter", Socket, ALL),
    case("x32-calls", "CVE-2014-0038 (Linux): x32's recvmmsg", Privilege, ALL),
    case("chroot-twice", "Docker 0.11: chroot within chroot", Link, ALL),
    case("core-pattern", "CVE-2025-52881 (runc), CVE-2019-19921 (runc): core_pattern", Mask, ALL),
    case("modprobe-path", "CVE-2025-31133 (runc): writable /proc/sys", Mask, ALL),
    case("binfmt", "CVE-2015-3630 (Docker): binfmt_misc of the host", Mask, ALL),
    case("overcommit", "CVE-2015-3630 (Docker): writable /proc/sys/vm", Mask, ALL),
    case("sysrq", "CVE-2025-52881 (runc): sysrq-trigger", Mask, ALL),
    case("irq-affinity", "CVE-2015-3630 (Docker): /proc/irq", Mask, ALL),
    case("uevent-helper", "Docker 0.11: uevent_helper runs on the host", Mask, ALL),
    case("sys-uevent", "Docker 0.11: writable /sys", Mask, ALL),
    case("cgroup-procs", "CVE-2023-28642, CVE-2023-25809 (runc): a writable cgroup", Mask, ALL),
    case("cgroup-mkdir", "CVE-2023-25809 (runc): a writable cgroup", Mask, ALL),
    case("kcore", "Docker's list: the kernel's memory", Mask, ALL),
    case("keys", "moby#36368: keys of others", Mask, ALL),
    case("acpi", "CVE-2018-10892 (Docker): /proc/acpi", Mask, ALL),
    case("scsi", "CVE-2017-16539 (Docker): /proc/scsi removes disks", Mask, ALL),
    case("asound", "CVE-2015-3630 (Docker): /proc/asound", Mask, ALL),
    case("interrupts", "moby#49560: side channels by /proc/interrupts", Mask, ALL),
    case("latency-stats", "CVE-2015-3630 (Docker): /proc/latency_stats", Mask, ALL),
    case("sched-debug", "moby#21263: names of all processes", Mask, ALL),
    case("timer-list", "CVE-2017-5967 (Linux): names of all processes", Mask, ALL),
    case("timer-stats", "CVE-2015-3630 (Docker): /proc/timer_stats", Mask, ALL),
    case("nodes-of-the-host", "CVE-2025-31133 class (runc): the host's /dev/null, its mode changed", Device, ALL),
    case("masks-of-the-host", "CVE-2025-31133 class (runc): the host's /dev/null, as a mask", Mask, ALL),
    case("firmware", "moby#26618: ACPI tables", Mask, ALL),
    case("powercap", "CVE-2020-8694 (PLATYPUS): energy as a side channel", Mask, ALL),
    case("thermal", "moby#49560: side channels by thermal_throttle", Mask, ALL),
    case("node-disk", "CVE-2020-13401 class: a disk by mknod", Device, ALL),
    case("node-loop", "the host's loop devices by mknod", Device, ALL),
    case("node-fuse", "the host's FUSE by mknod", Device, ALL),
    case("node-memory", "the machine's memory by mknod", Device, ALL),
    case("node-kmsg", "the kernel's log by mknod", Device, ALL),
    case("node-console", "CVE-2025-52565 (runc): the host's console", Device, ALL),
    case("dev-console", "CVE-2025-52565 (runc): /dev/console", Terminal, ALL),
    case("dev-kmsg", "Docker's list: /dev/kmsg", Device, ALL),
    case("terminal", "CVE-2017-5226 (bubblewrap), CVE-2016-10124 (LXC): TIOCSTI", Terminal, ALL),
    case("capabilities", "Docker's list: capabilities", Privilege, ALL),
    case("inheritable", "CVE-2022-24769 (moby), -29162 (runc), -27650 (crun), -27649 (podman)", Privilege, ALL),
    case("no-new-privileges", "CVE-2021-41091 (moby): set-id programs", Privilege, ALL),
    case("filter", "libcontainer without libseccomp: no filter", Privilege, ALL),
    case("own-group", "CVE-2023-25173 (containerd), -36109 (moby), -2989 (podman)", Account, ALL),
    case("tmp-size", "moby#47248 class: memory filled by tmpfs", Resource, ALL),
    case("run-size", "moby#47248 class: memory filled by tmpfs", Resource, ALL),
    case("var-tmp-size", "moby#47248 class: memory filled by tmpfs", Resource, ALL),
    case("shm-size", "moby#47248 class: memory filled by /dev/shm", Resource, ALL),
    case("hosts-size", "moby#47248 class: memory filled by /etc/hosts", Resource, ALL),
    case("core-size", "CVE-2022-4415 class: cores of others", Resource, ALL),

    // Tried by `probe devices`, for one that may mount.
    case("admin-mounts", "what makes the next ones mean something", Device, &[Start]),
    case("admin-loop", "the host's loop devices with CAP_SYS_ADMIN", Device, &[Start]),
    case("admin-fuse", "the host's FUSE with CAP_SYS_ADMIN", Device, &[Start]),
    case("admin-disk", "a disk with CAP_SYS_ADMIN", Device, &[Start]),
    case("admin-virtual-disk", "a disk with CAP_SYS_ADMIN", Device, &[Start]),
    case("admin-devtmpfs", "the host's devtmpfs with CAP_SYS_ADMIN", Device, &[Start]),
    case("admin-mount-disk", "a file system of the host's disk with CAP_SYS_ADMIN", Device, &[Start]),
    case("admin-memory", "the machine's memory with CAP_SYS_ADMIN", Device, &[Start]),

    // Tests of their own.
    case("joiner", "CVE-2016-9962 (runc), CVE-2016-8649 (LXC): a process on its way in", Joiner, &[Exec, Check]),
    case("workdir-raced", "CVE-2024-21626 (runc): WORKDIR exchanged for /proc/self/fd/N", Descriptor, &[Start, Exec, Check]),
    case("workdir-linked", "CVE-2024-21626 (runc): WORKDIR is a link to /proc/self/fd/N", Descriptor, &[Exec]),
    case("program-is-runtime", "CVE-2019-5736 (runc): `#!/proc/self/exe`", Joiner, &[Start, Run]),
    case("proc-link", "CVE-2023-27561, CVE-2019-19921 (runc), CVE-2025-54867 (youki)", Link, &[Start, Run, Import]),
    case("sys-link", "CVE-2023-28642 (runc): /sys is a link", Link, &[Start, Run]),
    case("dev-link", "CVE-2019-18837 (crun), CVE-2025-52565 (runc): /dev is a link", Link, &[Start, Run]),
    case("dev-null-link", "CVE-2025-31133 (runc), CVE-2025-62161 (youki): /dev/null is a link", Mask, &[Start]),
    case("etc-link", "CVE-2015-3629 (libcontainer): /etc is a link out", Link, &[Start]),
    case("workdir-link", "CVE-2014-9356 (Docker): WORKDIR is a link out", Link, &[Start, Run]),
    case("volume-over-proc", "CVE-2019-16884 (runc), CVE-2015-3631 (Docker): a volume over /proc", MountTarget, &[Start]),
    case("nested-volume", "CVE-2021-30465 (runc), CVE-2015-1335 (LXC): a link at a mount target", MountTarget, &[Start]),
    case("nested-file", "CVE-2024-45310 (runc): an empty file made on the host", MountTarget, &[Start]),
    case("account-fifo", "a FIFO for /etc/passwd is waited for", Account, &[Start, Run]),
    case("account-fifo-later", "a FIFO for /etc/passwd, made while it runs", Account, &[Check]),
    case("account-endless", "CVE-2026-47262: /dev/zero for /etc/passwd", Account, &[Start, Run]),
    case("account-huge", "CVE-2026-47262: 1.5 GB of /etc/passwd", Account, &[Start, Run]),
    case("account-kernel", "/proc/kmsg for /etc/group", Account, &[Start]),
    case("user-number", "CVE-2016-3697 (libcontainer): a user who is called 1000", Account, &[Start]),
    case("user-overflow", "CVE-2024-40635 (containerd): user 4294967295 is root", Account, &[Start]),
    case("fill-link", "CVE-2022-23648 (containerd): VOLUME leads to the host", Link, &[Fill]),
    case("fill-device", "CVE-2021-41091 (moby): what a volume takes over", Device, &[Fill]),
    case("cache-name", "CVE-2024-9675 (buildah): a cache mount's id leads out", MountTarget, &[Run]),
    case("mount-source-link", "CVE-2024-23651 (BuildKit), CVE-2024-11218 (buildah)", MountTarget, &[Run]),
    case("archive-link", "CVE-2014-6407 (Docker): a link, and a file through it", Link, &[Run]),
    case("capability-policy", "CAP_SYS_ADMIN is named", Privilege, &[Start]),
];
