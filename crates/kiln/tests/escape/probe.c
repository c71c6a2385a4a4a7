// Tries ways out of a sandbox that others were found to have, and says of each `NAME held` or
// `NAME ESCAPED: what was seen`. The names are those of cases.rs, which knows where they come from.
//
//   probe all            every way that a plain program has, once
//   probe devices        ways to a device of the host, for one with CAP_SYS_ADMIN and CAP_MKNOD
//   probe watch          looks at every process that joins the instance, without end
//   probe swap DIR N     puts a link to /proc/self/fd/N in place of DIR and back, without end
//   probe where          says whether the working directory lies below the root
//   probe until FILE     waits for the file
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void say(const char *name, int escaped, const char *format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (escaped) printf("%s ESCAPED: %s\n", name, text);
    else printf("%s held\n", name);
    fflush(stdout);
}

// A call that must fail.
static void refused(const char *name, long result) {
    say(name, result >= 0, "answered %ld", result);
}

static void closed(const char *name, const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    say(name, fd >= 0, "%s was opened", path);
    if (fd >= 0) close(fd);
}

// Nothing to be read there: it is missing, empty, or shut.
static void blank(const char *name, const char *path) {
    struct stat stat;
    if (lstat(path, &stat) != 0) { say(name, 0, ""); return; }
    if (S_ISDIR(stat.st_mode)) {
        int seen = 0;
        DIR *dir = opendir(path);
        while (dir) {
            struct dirent *entry = readdir(dir);
            if (!entry) break;
            if (entry->d_name[0] != '.') seen++;
        }
        if (dir) closedir(dir);
        say(name, seen > 0, "%s has %d entries", path, seen);
        return;
    }
    char byte;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    long got = fd < 0 ? 0 : read(fd, &byte, 1);
    if (fd >= 0) close(fd);
    say(name, got > 0, "%s was read", path);
}

static int same(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

// Up from the working directory: the last step must be the root.
static void where(const char *name) {
    char path[64 * 3 + 1] = "";
    for (int i = 0; i < 64; i++) strcat(path, "../");
    char cwd[4096];
    long length = syscall(SYS_getcwd, cwd, sizeof cwd);
    int inside = length > 0 && cwd[0] == '/' && same(path, "/");
    say(name, !inside, "the working directory is `%s`", length > 0 ? cwd : "?");
}

static void descriptors(const char *name) {
    char seen[512] = "";
    DIR *dir = opendir("/proc/self/fd");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || fd < 3 || fd == dirfd(dir)) continue;
        char to[256] = "", path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, to, sizeof to - 1) < 0) continue;
        snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%d=%.60s ", fd, to);
    }
    if (dir) closedir(dir);
    say(name, seen[0] != 0, "%s", seen);
}

// Nodes of the host's, in /dev and over what is hidden: whoever changes one here has changed the
// host's. What is there is set, so that nothing is broken if it can be.
static void unchanged(const char *name, const char *const *paths) {
    struct stat stat;
    for (; *paths; paths++) {
        if (lstat(*paths, &stat) != 0 || !S_ISCHR(stat.st_mode)) continue;
        if (chmod(*paths, stat.st_mode & 07777) == 0) {
            say(name, 1, "the mode of %s was set", *paths);
            return;
        }
    }
    say(name, 0, "");
}

// The files that a program in here was given as input and output: never those of whoever asked.
static void standard(const char *name) {
    for (int fd = 0; fd < 3; fd++) {
        struct stat stat;
        if (fstat(fd, &stat) != 0) continue;
        int null = S_ISCHR(stat.st_mode) && stat.st_rdev == makedev(1, 3);
        if (!null && !S_ISFIFO(stat.st_mode)) {
            say(name, 1, "descriptor %d has mode %o", fd, stat.st_mode);
            return;
        }
    }
    say(name, 0, "");
}

static unsigned long long field(const char *key, int base) {
    char line[256];
    unsigned long long value = ~0ULL;
    FILE *file = fopen("/proc/self/status", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, key, strlen(key))) value = strtoull(line + strlen(key), 0, base);
    if (file) fclose(file);
    return value;
}

static void binary(const char *name) {
    for (int pid = 1; pid < 200; pid++) {
        char path[64], to[256] = "";
        snprintf(path, sizeof path, "/proc/%d/exe", pid);
        if (readlink(path, to, sizeof to - 1) < 0) continue;
        int own = same(path, "/proc/self/exe") || !access(to, F_OK);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        char byte;
        int reader = open(path, O_RDONLY | O_CLOEXEC);
        long got = reader < 0 ? 0 : read(reader, &byte, 1);
        // What is there is written, so that nothing is broken if it can be.
        int wrote = fd >= 0 && got == 1 && pwrite(fd, &byte, 1, 0) == 1;
        if (fd >= 0) close(fd);
        if (reader >= 0) close(reader);
        if (wrote || (!own && strncmp(to, "/memfd:", 7))) {
            say(name, 1, "%s is %s%s", path, to, wrote ? ", and was written to" : "");
            return;
        }
    }
    say(name, 0, "");
}

static void abstract(const char *name) {
    char line[512], seen[512] = "";
    FILE *file = fopen("/proc/net/unix", "re");
    while (file && fgets(line, sizeof line, file)) {
        char *at = strchr(line, '@');
        if (at) snprintf(seen, sizeof seen, "%.200s", at);
    }
    if (file) fclose(file);
    say(name, seen[0] != 0, "%s", seen);
}

static void families(void) {
    refused("socket-alg", socket(38, SOCK_SEQPACKET, 0));
    refused("socket-vsock", socket(40, SOCK_STREAM, 0));
    refused("socket-rds", socket(21, SOCK_SEQPACKET, 0));
    refused("socket-tipc", socket(30, SOCK_SEQPACKET, 0));
    refused("socket-can", socket(29, SOCK_RAW, 1));
    refused("socket-bluetooth", socket(31, SOCK_RAW, 1));
    refused("socket-nfc", socket(39, SOCK_STREAM, 0));
    refused("socket-key", socket(15, SOCK_RAW, 2));
    int pair[2];
    refused("socketpair-tipc", socketpair(30, SOCK_SEQPACKET, 0, pair));
    int good = socket(AF_INET, SOCK_STREAM, 0) >= 0 && socket(AF_INET6, SOCK_STREAM, 0) >= 0 &&
               socket(AF_UNIX, SOCK_STREAM, 0) >= 0 && socket(AF_NETLINK, SOCK_RAW, 0) >= 0;
    say("sockets-that-are-needed", !good, "%s", strerror(errno));
}

// Calls that the filter refuses; arguments with which they would do no harm.
static void calls(void) {
    refused("mount", mount("x", "/tmp", "tmpfs", 0, 0));
    refused("remount", mount("none", "/sys", 0, MS_REMOUNT | MS_BIND, 0));
    refused("umount", umount2("/proc", MNT_DETACH));
    refused("fsopen", syscall(430, "tmpfs", 0));
    refused("open-tree", syscall(428, AT_FDCWD, "/", 1));
    refused("pivot-root", syscall(SYS_pivot_root, "/tmp", "/tmp"));
    refused("unshare-user", unshare(CLONE_NEWUSER));
    refused("unshare-mount", unshare(CLONE_NEWNS));
    refused("unshare-cgroup", unshare(CLONE_NEWCGROUP));
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    if (child > 0) waitpid(child, 0, 0);
    refused("clone-user", child);
    uint64_t arguments[11] = { CLONE_NEWUSER, [4] = SIGCHLD };
    child = syscall(435, arguments, sizeof arguments);
    if (child == 0) _exit(0);
    if (child > 0) waitpid(child, 0, 0);
    refused("clone3-user", child);
    int fd = open("/proc/1/ns/mnt", O_RDONLY);
    refused("setns", setns(fd < 0 ? 0 : fd, 0));
    struct { unsigned bytes; int type; unsigned char data[128]; } handle = { .bytes = 8, .type = 1 };
    handle.data[0] = 2;
    refused("open-by-handle", syscall(SYS_open_by_handle_at, AT_FDCWD, &handle, O_RDONLY));
    refused("io-uring", syscall(425, 1, (char[256]){0}));
    refused("bpf", syscall(SYS_bpf, 0, (uint64_t[16]){ 2ULL << 32 | 1, 4ULL << 32 | 4 }, 72));
    refused("perf-event", syscall(SYS_perf_event_open, (uint32_t[32]){ 1, 112 }, 0, -1, -1, 0));
    refused("userfaultfd", syscall(SYS_userfaultfd, 0));
    refused("keyctl", syscall(SYS_keyctl, 0, -3, 0, 0, 0));
    refused("add-key", syscall(SYS_add_key, "user", "kiln", "x", 1, -2));
    refused("init-module", syscall(SYS_init_module, "", 0, ""));
    refused("kexec", syscall(SYS_kexec_load, 0, 0, 0, 0));
    refused("iopl", syscall(SYS_iopl, 0));
    refused("acct", syscall(SYS_acct, "/none"));
    refused("swapon", syscall(SYS_swapon, "/none", 0));
    refused("settime", syscall(SYS_settimeofday, 0, (int[2]){ 0, 0 }));
    refused("quotactl", syscall(SYS_quotactl, 0x80000101, "/none", 0, 0));
    refused("vm86-personality", personality(ADDR_NO_RANDOMIZE));
    refused("fanotify", syscall(SYS_fanotify_init, 0, 0));
    refused("lookup-dcookie", syscall(SYS_lookup_dcookie, 0, 0, 0));
    refused("syslog", syscall(SYS_syslog, 9, 0, 0));
}

static int ended_by(int (*what)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) _exit(what());
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int old_socket(void) {
    long result = -1;
#ifdef __x86_64__
    // getpid(2) of the 32-bit interface, from where socketcall(2) would be no farther.
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
#endif
    return result > 0 ? 7 : 0;
}

static int x32(void) { return syscall(0x40000000 + SYS_getpid) > 0 ? 7 : 0; }

static int chrooted(void) {
    mkdir("/tmp/cell", 0755);
    int root = open("/", O_RDONLY | O_DIRECTORY);
    struct stat before, after;
    if (fstat(root, &before) || chroot("/tmp/cell")) return 0;
    if (fchdir(root)) return 0;
    for (int i = 0; i < 64; i++)
        if (chdir("..")) return 0;
    if (stat(".", &after)) return 0;
    return before.st_ino == after.st_ino && before.st_dev == after.st_dev ? 0 : 7;
}

static void bounded(const char *name, const char *path, unsigned long long most) {
    struct statvfs fs;
    struct statfs kind;
    if (statvfs(path, &fs) || statfs(path, &kind) || kind.f_type != 0x01021994) {
        say(name, 0, "");
        return;
    }
    unsigned long long bytes = (unsigned long long)fs.f_blocks * fs.f_frsize;
    int endless = bytes == 0 || bytes > most || fs.f_files == 0 || fs.f_files > most / 1024;
    say(name, endless, "%s takes %llu bytes in %lu files", path, bytes, (unsigned long)fs.f_files);
}

static void node(const char *name, const char *dir, mode_t kind, dev_t device) {
    char path[256];
    snprintf(path, sizeof path, "%s/node-%d", dir, (int)getpid());
    unlink(path);
    int made = mknod(path, kind | 0666, device) == 0;
    int fd = made ? open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY) : -1;
    // That the host has no such device is no merit of the sandbox's.
    int past = made && fd < 0 && (errno == ENXIO || errno == ENODEV || errno == ENOMEDIUM);
    say(name, fd >= 0 || past, "%s is open to %u:%u", dir, major(device), minor(device));
    if (fd >= 0) close(fd);
    unlink(path);
}

static void all(void) {
    where("workdir");
    descriptors("descriptors");
    standard("standard-streams");
    binary("binary");
    abstract("abstract-sockets");
    families();
    calls();
    say("32-bit-calls", ended_by(old_socket) == 7, "the 32-bit interface answers");
    say("x32-calls", ended_by(x32) == 7, "the x32 interface answers");
    say("chroot-twice", ended_by(chrooted) == 7, "the root has a parent");

    // A writable one of these runs a program of ours on the host, or halts it.
    closed("core-pattern", "/proc/sys/kernel/core_pattern", O_WRONLY);
    closed("modprobe-path", "/proc/sys/kernel/modprobe", O_WRONLY);
    closed("binfmt", "/proc/sys/fs/binfmt_misc/register", O_WRONLY);
    closed("overcommit", "/proc/sys/vm/overcommit_memory", O_WRONLY);
    closed("sysrq", "/proc/sysrq-trigger", O_WRONLY);
    closed("irq-affinity", "/proc/irq/default_smp_affinity", O_WRONLY);
    closed("uevent-helper", "/sys/kernel/uevent_helper", O_WRONLY);
    closed("sys-uevent", "/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY);
    closed("cgroup-procs", "/sys/fs/cgroup/cgroup.procs", O_WRONLY);
    refused("cgroup-mkdir", mkdir("/sys/fs/cgroup/own", 0755));
    blank("kcore", "/proc/kcore");
    blank("keys", "/proc/keys");
    blank("acpi", "/proc/acpi");
    blank("scsi", "/proc/scsi");
    blank("asound", "/proc/asound");
    blank("interrupts", "/proc/interrupts");
    blank("latency-stats", "/proc/latency_stats");
    blank("sched-debug", "/proc/sched_debug");
    blank("timer-list", "/proc/timer_list");
    blank("timer-stats", "/proc/timer_stats");
    unchanged("nodes-of-the-host", (const char *const[]){
        "/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero", 0 });
    unchanged("masks-of-the-host", (const char *const[]){
        "/proc/kcore", "/proc/keys", "/proc/interrupts", "/proc/latency_stats",
        "/proc/sched_debug", "/proc/timer_list", "/proc/timer_stats", 0 });
    blank("firmware", "/sys/firmware");
    blank("powercap", "/sys/devices/virtual/powercap");
    blank("thermal", "/sys/devices/system/cpu/cpu0/thermal_throttle");

    // Devices of the host: its disks, its memory, its log, its console.
    node("node-disk", "/tmp", S_IFBLK, makedev(8, 0));
    node("node-loop", "/dev/shm", S_IFCHR, makedev(10, 237));
    node("node-fuse", "/dev/shm", S_IFCHR, makedev(10, 229));
    node("node-memory", "/tmp", S_IFCHR, makedev(1, 1));
    node("node-kmsg", "/tmp", S_IFCHR, makedev(1, 11));
    node("node-console", "/tmp", S_IFCHR, makedev(5, 1));
    closed("dev-console", "/dev/console", O_RDWR);
    closed("dev-kmsg", "/dev/kmsg", O_RDONLY);
    closed("terminal", "/dev/tty", O_RDWR);

    say("capabilities", (field("CapEff:", 16) | field("CapBnd:", 16)) & ~0xa80425fbULL,
        "effective %llx", field("CapEff:", 16));
    say("inheritable", field("CapInh:", 16) || field("CapAmb:", 16), "%llx", field("CapInh:", 16));
    say("no-new-privileges", field("NoNewPrivs:", 10) != 1, "off");
    say("filter", field("Seccomp:", 10) != 2, "none");
    gid_t groups[64];
    int count = getgroups(64, groups), mine = 0;
    for (int i = 0; i < count; i++) mine |= groups[i] == getgid();
    say("own-group", !mine, "group %u is not among the supplementary ones", getgid());

    bounded("tmp-size", "/tmp", 4ULL << 30);
    bounded("run-size", "/run", 4ULL << 30);
    bounded("var-tmp-size", "/var/tmp", 4ULL << 30);
    bounded("shm-size", "/dev/shm", 1ULL << 30);
    bounded("hosts-size", "/etc/hosts", 1ULL << 30);
    struct rlimit limit;
    getrlimit(RLIMIT_CORE, &limit);
    say("core-size", limit.rlim_cur != 0, "%llu", (unsigned long long)limit.rlim_cur);
}

// With CAP_SYS_ADMIN there are mounts without `nodev`, and a devtmpfs; what is left is the list.
static void devices(void) {
    int on = mount("x", "/tmp", "tmpfs", 0, "size=1m") == 0;
    say("admin-mounts", !on, "the test means nothing: %s", strerror(errno));
    node("admin-loop", "/tmp", S_IFCHR, makedev(10, 237));
    node("admin-fuse", "/tmp", S_IFCHR, makedev(10, 229));
    node("admin-disk", "/tmp", S_IFBLK, makedev(8, 0));
    node("admin-virtual-disk", "/tmp", S_IFBLK, makedev(254, 0));
    node("admin-memory", "/tmp", S_IFCHR, makedev(1, 1));
    if (mount("x", "/tmp", "devtmpfs", 0, 0) == 0) {
        closed("admin-devtmpfs", "/tmp/loop-control", O_RDWR);
        closed("admin-devtmpfs-memory", "/tmp/mem", O_RDONLY);
        closed("admin-devtmpfs-log", "/tmp/kmsg", O_RDONLY);
        const char *disks[] = { "vda", "vda1", "sda", "sda1", "nvme0n1", "loop0" };
        int mounted = 0;
        for (unsigned i = 0; i < sizeof disks / sizeof *disks; i++) {
            char path[32];
            snprintf(path, sizeof path, "/tmp/%s", disks[i]);
            if (access(path, F_OK)) continue;
            // An error from the file system would mean that the disk was open to it.
            int done = mount(path, "/dev/shm", "ext4", MS_RDONLY, 0);
            if (done == 0 || (errno != EPERM && errno != EACCES)) mounted = 1;
        }
        say("admin-mount-disk", mounted, "a disk was open to a file system");
        int null = open("/tmp/null", O_WRONLY);
        say("admin-null", null < 0, "what is on the list is refused: %s", strerror(errno));
    }
}

// Everything in /proc that is not this process must be as we are: same root, no file of the host's,
// no more privileges. CAP_SYS_PTRACE makes all of it visible.
static void watch(void) {
    long seen = 0, last = 0;
    char told[4096] = "";
    for (;;) {
        DIR *dir = opendir("/proc");
        for (struct dirent *entry; dir && (entry = readdir(dir));) {
            int pid = atoi(entry->d_name);
            if (pid <= 1 || pid == getpid()) continue;
            char path[64], to[256], bad[600] = "";
            snprintf(path, sizeof path, "/proc/%d/root", pid);
            struct stat root, own;
            if (stat(path, &root) == 0 && stat("/", &own) == 0 &&
                (root.st_ino != own.st_ino || root.st_dev != own.st_dev))
                snprintf(bad, sizeof bad, "its root is another");
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            long length = readlink(path, to, sizeof to - 1);
            if (length > 0) {
                to[length] = 0;
                if (strncmp(to, "/memfd:", 7) && access(to, F_OK))
                    snprintf(bad, sizeof bad, "it runs %s", to);
            }
            snprintf(path, sizeof path, "/proc/%d/fd", pid);
            DIR *files = opendir(path);
            for (struct dirent *file; files && (file = readdir(files));) {
                if (file->d_name[0] == '.') continue;
                char link[128];
                snprintf(link, sizeof link, "/proc/%d/fd/%.20s", pid, file->d_name);
                length = readlink(link, to, sizeof to - 1);
                if (length <= 0) continue;
                to[length] = 0;
                if (strncmp(to, "pipe:", 5) && strcmp(to, "/dev/null") && strcmp(to, "/"))
                    snprintf(bad, sizeof bad, "it has %s", to);
            }
            if (files) closedir(files);
            snprintf(path, sizeof path, "/proc/%d/status", pid);
            FILE *file = fopen(path, "re");
            char line[256];
            int complete = 0;
            while (file && fgets(line, sizeof line, file)) {
                unsigned long long value;
                if (sscanf(line, "CapEff: %llx", &value) == 1 && value & ~0xa80c25fbULL)
                    snprintf(bad, sizeof bad, "it may do %llx", value);
                if (sscanf(line, "Seccomp: %llu", &value) == 1) {
                    complete = 1;
                    if (value != 2) snprintf(bad, sizeof bad, "it has no filter");
                }
            }
            if (file) fclose(file);
            if (complete && pid != last) { seen++; last = pid; }
            if (bad[0] && !strstr(told, bad) && strlen(told) + strlen(bad) < sizeof told - 2) {
                strcat(told, bad);
                say("joiner", 1, "pid %d: %s", pid, bad);
            }
        }
        if (dir) closedir(dir);
        static long shown;
        if (seen >= shown + 5) {
            shown = seen;
            printf("seen %ld\n", seen);
            fflush(stdout);
        }
    }
}

static void swap(const char *dir, int number) {
    char link[256], spare[256], target[64];
    snprintf(link, sizeof link, "%s.link", dir);
    snprintf(spare, sizeof spare, "%s.dir", dir);
    mkdir(spare, 0755);
    mkdir(dir, 0755);
    for (;; number = number < 24 ? number + 1 : 3) {
        snprintf(target, sizeof target, "/proc/self/fd/%d", number);
        unlink(link);
        if (symlink(target, link)) continue;
        // Both names always lead to something.
        for (int i = 0; i < 200; i++) syscall(SYS_renameat2, AT_FDCWD, dir, AT_FDCWD, link, 2);
    }
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "all";
    if (!strcmp(what, "all")) all();
    else if (!strcmp(what, "devices")) devices();
    else if (!strcmp(what, "watch")) watch();
    else if (!strcmp(what, "where")) where("where");
    else if (!strcmp(what, "swap") && count > 3) swap(words[2], atoi(words[3]));
    else if (!strcmp(what, "until") && count > 2)
        while (access(words[2], F_OK)) usleep(10000);
    else return 2;
    if (!strcmp(what, "all") || !strcmp(what, "devices")) {
        puts("END held");
        fflush(stdout);
        if (count > 2 && !strcmp(words[2], "stay")) pause();
    }
    return 0;
}
