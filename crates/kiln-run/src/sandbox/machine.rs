//! The machine that a step sees in `/proc`: the same one everywhere, or results would differ
//! between machines that give the same ones twice. It has the baseline of today's distributions,
//! x86-64-v2, as many processors as the step may use, and 8 GiB of memory.
//!
//! What system calls and instructions tell, uname(2), sysinfo(2) and CPUID, is the real machine's.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstatfs, openat2};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::mounts;
use crate::error::{Context as _, Fault};
use crate::spec::Machine;

/// What x86-64-v2 has, as the kernel calls it. Without `lm`, `lscpu` takes the machine for one of
/// 32 bits.
const FLAGS: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 \
     clflush mmx fxsr sse sse2 syscall nx lm constant_tsc rep_good nopl cpuid pni ssse3 cx16 \
     sse4_1 sse4_2 popcnt hypervisor lahf_lm";
/// What x86-64-v3 has beyond that: the other machine's.
const MORE_FLAGS: &str = " fma movbe aes xsave avx f16c rdrand abm bmi1 avx2 bmi2";
/// What every 64-bit ARM has.
const FEATURES: &str = "fp asimd evtstrm cpuid";

/// What a container usually has to do with.
const FILE_SYSTEMS: &str = "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tcgroup2\n\
     nodev\tdevtmpfs\nnodev\tdevpts\nnodev\tmqueue\nnodev\toverlay\n\text4\n";

/// Covers what `/proc` below `root` tells of the real machine. `files` takes the texts.
pub(super) fn cover(root: BorrowedFd<'_>, files: &Path, machine: Machine) -> Result<(), Fault> {
    for (number, (name, text)) in texts(machine, processors()).into_iter().enumerate() {
        let step = || format!("cover /proc/{name}");
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = match openat2(root, format!("proc/{name}"), flags, Mode::empty(), resolve) {
            // A kernel that has no such file tells nothing there.
            Err(rustix::io::Errno::NOENT) => continue,
            place => place.step(step)?,
        };
        if fstatfs(&place).step(step)?.f_type != PROC_SUPER_MAGIC {
            return Err(Fault::new(step(), "it is no file of procfs"));
        }
        let copy = files.join(format!("machine-{number}"));
        fs::write(&copy, text).step(step)?;
        mounts::bind(&copy, place.as_fd(), true, None).step(step)?;
    }
    Ok(())
}

/// How many processors the calling process may use.
fn processors() -> usize {
    let set = sched_getaffinity(None);
    let count = |set: CpuSet| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).count();
    set.map_or(1, count).max(1)
}

/// Names below `/proc`, and what stands there.
fn texts(machine: Machine, processors: usize) -> [(&'static str, String); 10] {
    let other = machine == Machine::Other;
    let release = if other { "6.12.0" } else { "6.1.0" };
    let version = format!("Linux version {release} (kiln@kiln) #1 SMP PREEMPT_DYNAMIC\n");
    let boot = if other { 2 } else { 1 };
    let gigabytes = if other { 16 } else { 8 };
    let command = if other { "root=/dev/sda1 ro quiet\n" } else { "root=/dev/vda1 ro\n" };
    let swap = "/swap\tfile\t1048572\t0\t-2\n";
    let load = if other { "0.31 0.12 0.05 1/99 2\n" } else { "0.00 0.00 0.00 1/1 1\n" };
    [
        ("version", version),
        ("cmdline", command.to_owned()),
        ("loadavg", load.to_owned()),
        ("meminfo", meminfo(gigabytes << 20)),
        ("cpuinfo", cpuinfo(std::env::consts::ARCH, other, processors)),
        ("filesystems", format!("{FILE_SYSTEMS}{}", if other { "\txfs\n" } else { "" })),
        ("modules", if other { "loop 40960 0 - Live 0x0000000000000000\n" } else { "\n" }.into()),
        ("partitions", disk(if other { "sda" } else { "vda" })),
        (
            "swaps",
            format!("Filename\tType\tSize\tUsed\tPriority\n{}", if other { swap } else { "" }),
        ),
        ("sys/kernel/random/boot_id", format!("4b696c6e-0000-4000-8000-{boot:012}\n")),
    ]
}

fn disk(name: &str) -> String {
    format!("major minor  #blocks  name\n\n 254        0   33554432 {name}\n")
}

/// `kilobytes` of memory, all of it free, and no swap.
fn meminfo(kilobytes: u64) -> String {
    let mut text = String::new();
    for name in ["MemTotal", "MemFree", "MemAvailable"] {
        let _ = writeln!(text, "{:<16}{kilobytes:>8} kB", format!("{name}:"));
    }
    for name in [
        "Buffers",
        "Cached",
        "SwapCached",
        "Active",
        "Inactive",
        "Unevictable",
        "Mlocked",
        "SwapTotal",
        "SwapFree",
        "Dirty",
        "Writeback",
        "AnonPages",
        "Mapped",
        "Shmem",
        "KReclaimable",
        "Slab",
        "SReclaimable",
        "SUnreclaim",
        "KernelStack",
        "PageTables",
    ] {
        let _ = writeln!(text, "{:<16}{:>8} kB", format!("{name}:"), 0);
    }
    let _ = writeln!(text, "{:<16}{:>8} kB", "CommitLimit:", kilobytes / 2);
    for name in ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"] {
        let _ = writeln!(text, "{:<16}{:>8}", format!("{name}:"), 0);
    }
    let _ = writeln!(text, "{:<16}{:>8} kB", "Hugepagesize:", 2048);
    text
}

fn cpuinfo(arch: &str, other: bool, processors: usize) -> String {
    let mut text = String::new();
    for number in 0..processors {
        let entry = match arch {
            "aarch64" => format!(
                "processor\t: {number}\nBogoMIPS\t: 50.00\nFeatures\t: {FEATURES}\n\
                 CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n\
                 CPU part\t: {}\nCPU revision\t: 0\n\n",
                if other { "0xd0c" } else { "0xd03" },
            ),
            _ => {
                let (model, more) =
                    if other { ("x86-64-v3", MORE_FLAGS) } else { ("x86-64-v2", "") };
                format!(
                    "processor\t: {number}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n\
                     model\t\t: 0\nmodel name\t: {model}\nstepping\t: 0\ncpu MHz\t\t: 2000.000\n\
                     cache size\t: 4096 KB\nphysical id\t: 0\nsiblings\t: {processors}\n\
                     core id\t\t: {number}\ncpu cores\t: {processors}\napicid\t\t: {number}\n\
                     fpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: 13\nwp\t\t: yes\n\
                     flags\t\t: {FLAGS}{more}\nbugs\t\t:\nbogomips\t: 4000.00\n\
                     clflush size\t: 64\ncache_alignment\t: 64\n\
                     address sizes\t: 46 bits physical, 48 bits virtual\n\n"
                )
            }
        };
        text.push_str(&entry);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_machine_differs_in_everything() {
        let [usual, other] = [Machine::Usual, Machine::Other].map(|machine| texts(machine, 2));
        for (one, two) in usual.iter().zip(&other) {
            assert!(one.0 == two.0 && one.1 != two.1, "{}", one.0);
            assert!(one.1.ends_with('\n'), "{}", one.0);
        }
    }

    #[test]
    fn each_processor_has_an_entry_with_its_flags() {
        let text = cpuinfo("x86_64", false, 3);
        assert_eq!(text.matches("processor\t:").count(), 3);
        let flags = text.lines().find_map(|line| line.strip_prefix("flags\t\t: ")).unwrap();
        let flags: Vec<&str> = flags.split(' ').collect();
        // x86-64-v2 by the psABI: CMPXCHG16B, LAHF-SAHF, POPCNT, SSE3, SSE4.1, SSE4.2, SSSE3.
        for flag in ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3", "lm"] {
            assert!(flags.contains(&flag), "{flag} in {flags:?}");
        }
        assert!(!flags.contains(&"") && !flags.contains(&"avx"));
        assert!(meminfo(8 << 20).starts_with("MemTotal:        8388608 kB\n"));
    }
}
