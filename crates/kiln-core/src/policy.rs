//! What a root allows a stage of a project beyond the ordinary, and which parts of a release need
//! that: a release may ask, only the root grants.

use std::collections::{BTreeMap, BTreeSet};

use crate::compose::Device;
use crate::tree::Tree;

/// Capabilities with which a program can leave its sandbox or change the machine, and how.
pub const UNDOING: [(&str, &str); 11] = [
    ("BPF", "loads programs into the kernel"),
    ("DAC_READ_SEARCH", "opens files of the host by their handles"),
    ("MAC_ADMIN", "changes the security modules' rules"),
    ("MAC_OVERRIDE", "is above the security modules' rules"),
    ("PERFMON", "watches the whole machine"),
    ("SYSLOG", "reads and clears the kernel's log"),
    ("SYS_ADMIN", "mounts what it likes"),
    ("SYS_BOOT", "may restart the machine"),
    ("SYS_MODULE", "loads modules into the kernel"),
    ("SYS_RAWIO", "reads and writes memory and devices"),
    ("SYS_TIME", "sets the machine's clock"),
];

/// Head of a policy file.
const HEAD: &str = "kiln-policy 1";

/// One file `policy/PROJECT/STAGE` of a root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootPolicy {
    /// By service.
    capabilities: BTreeMap<String, BTreeSet<String>>,
    /// Services that may have the host's network.
    host_network: BTreeSet<String>,
    /// Services that may run without the filter of system calls.
    unconfined: BTreeSet<String>,
    /// By service: the paths of devices on the host, and what may be done with each.
    devices: BTreeMap<String, BTreeMap<String, String>>,
}

/// Why a policy file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct PolicyError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl RootPolicy {
    /// Reads a file: `kiln-policy 1`, then `allow-capability SERVICE NAME`, `allow-host-network
    /// SERVICE`, `allow-unconfined SERVICE` or `allow-device SERVICE PATH [ACCESS]` a line, and comments after `#`.
    ///
    /// # Errors
    /// For anything else: a rule that is not understood must not be left out.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        let mut headed = false;
        for (number, line) in text.lines().enumerate() {
            let wrong = |message: String| PolicyError { line: number + 1, message };
            let words: Vec<&str> =
                line.split('#').next().unwrap_or_default().split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                _ if !headed => {
                    if words.join(" ") != HEAD {
                        return Err(wrong(format!("a policy begins with `{HEAD}`")));
                    }
                    headed = true;
                }
                ["allow-unconfined", service] => {
                    policy.unconfined.insert((*service).to_owned());
                }
                ["allow-capability", service, name] => {
                    let upper = name.to_ascii_uppercase();
                    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
                    if !UNDOING.iter().any(|(known, _)| *known == name) {
                        return Err(wrong(format!("`{name}` needs no policy, or is unknown")));
                    }
                    let services = policy.capabilities.entry((*service).to_owned());
                    services.or_default().insert(name.to_owned());
                }
                ["allow-device", service, path, access @ ..] if access.len() < 2 => {
                    let access = access.first().copied().unwrap_or("rwm");
                    if !path.starts_with('/') || !access.chars().all(|it| "rwm".contains(it)) {
                        let what = "a device is an absolute path, and `r`, `w`, `m` or several of \
                                    them behind it";
                        return Err(wrong(what.to_owned()));
                    }
                    let devices = policy.devices.entry((*service).to_owned()).or_default();
                    devices.entry((*path).to_owned()).or_default().push_str(access);
                }
                ["allow-host-network", service] => {
                    policy.host_network.insert((*service).to_owned());
                }
                _ => {
                    let message = "only `allow-capability SERVICE NAME`, `allow-device SERVICE PATH \
                                   [ACCESS]`, `allow-host-network SERVICE` and `allow-unconfined \
                                   SERVICE` are known";
                    return Err(wrong(message.to_owned()));
                }
            }
        }
        if headed {
            Ok(policy)
        } else {
            Err(PolicyError { line: 1, message: format!("a policy begins with `{HEAD}`") })
        }
    }

    /// Whether a service may have the host's network. Nothing but this allows it, in any stage.
    pub fn allows_host_network(&self, service: &str) -> bool {
        self.host_network.contains(service)
    }

    /// Whether a service may run without the filter of system calls.
    pub fn allows_unconfined(&self, service: &str) -> bool {
        self.unconfined.contains(service)
    }

    /// Whether a service may have this device of the host. Nothing but this allows it, in any stage.
    pub fn allows_device(&self, service: &str, device: &Device) -> bool {
        let granted = self.devices.get(service).and_then(|devices| devices.get(&device.source));
        granted.is_some_and(|granted| device.access.chars().all(|it| granted.contains(it)))
    }

    fn allows(&self, service: &str, capability: &str) -> bool {
        self.capabilities.get(service).is_some_and(|names| names.contains(capability))
    }
}

/// One capability of one service that undoes the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undoing {
    /// The service.
    pub service: String,
    /// Without `CAP_`.
    pub capability: &'static str,
    /// What a program does with it.
    pub why: &'static str,
    /// Whether the stage may have it.
    pub allowed: bool,
}

/// What of these services with their capabilities undoes the sandbox, and whether `stage` may have
/// it: `dev`, where people try things, has it, others by the root's own policy.
pub fn undoing<'a>(
    services: impl IntoIterator<Item = (&'a str, &'a BTreeSet<String>)>,
    stage: &str,
    policy: &RootPolicy,
) -> Vec<Undoing> {
    let mut found = Vec::new();
    for (service, capabilities) in services {
        for (capability, why) in UNDOING {
            if capabilities.contains(capability) {
                let allowed = stage == "dev" || policy.allows(service, capability);
                found.push(Undoing { service: service.to_owned(), capability, why, allowed });
            }
        }
    }
    found
}

/// Places of a root that are the runtime's own: what hides the host lies below them.
pub const SYSTEM_PLACES: [&str; 3] = ["proc", "sys", "dev"];

/// The first of [`SYSTEM_PLACES`] that is anything but a directory in `tree`: no program runs on
/// such an image.
pub fn taken_place(tree: &Tree) -> Option<&'static str> {
    let taken = |place: &&str| tree.get(place.as_bytes()).is_some_and(|node| !node.is_dir());
    SYSTEM_PLACES.into_iter().find(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::CAPABILITIES;
    use crate::settings::ALL_CAPABILITIES;
    use crate::tree::{Kind, Node};

    #[test]
    fn the_list_names_what_docker_does_not_give() {
        assert!(UNDOING.is_sorted());
        for (name, _) in UNDOING {
            assert!(ALL_CAPABILITIES.contains(&name) && !CAPABILITIES.contains(&name));
        }
    }

    #[test]
    fn links_in_place_of_system_folders_are_found() {
        let mut tree = Tree::new();
        tree.insert(b"proc", Node::new(Kind::Dir, 0o555));
        assert_eq!(taken_place(&tree), None);
        tree.insert(b"sys", Node::new(Kind::Symlink { target: b"/s".to_vec() }, 0o777));
        assert_eq!(taken_place(&tree), Some("sys"));
    }

    #[test]
    fn a_policy_is_read_or_refused() {
        let text = "# ours\nkiln-policy 1\n\nallow-capability db cap_sys_admin # for fuse\n";
        let policy = RootPolicy::parse(text).unwrap();
        assert!(policy.allows("db", "SYS_ADMIN"));
        assert!(!policy.allows("db", "BPF") && !policy.allows("web", "SYS_ADMIN"));
        let policy = RootPolicy::parse("kiln-policy 1\nallow-host-network dns\n").unwrap();
        assert!(policy.allows_host_network("dns") && !policy.allows_host_network("db"));
        let policy = RootPolicy::parse("kiln-policy 1\nallow-unconfined db\n").unwrap();
        assert!(policy.allows_unconfined("db") && !policy.allows_unconfined("web"));
        let text = "kiln-policy 1\nallow-device db /dev/fuse\nallow-device db /dev/kvm r\n";
        let policy = RootPolicy::parse(text).unwrap();
        for (service, source, access, allowed) in [
            ("db", "/dev/fuse", "rwm", true),
            ("db", "/dev/kvm", "r", true),
            ("db", "/dev/kvm", "rw", false),
            ("db", "/dev/sda", "r", false),
            ("web", "/dev/fuse", "r", false),
        ] {
            let (source, access) = (source.to_owned(), access.to_owned());
            let device = Device { target: "/dev/x".to_owned(), source, access };
            assert_eq!(policy.allows_device(service, &device), allowed, "{service} {device:?}");
        }
        for (text, line) in [
            ("", 1),
            ("kiln-policy 2\n", 1),
            ("allow-capability db SYS_ADMIN\n", 1),
            ("kiln-policy 1\nallow-capability db CHOWN\n", 2),
            ("kiln-policy 1\nallow-capability db\n", 2),
            ("kiln-policy 1\nallow-host-network\n", 2),
            ("kiln-policy 1\nallow-device db\n", 2),
            ("kiln-policy 1\nallow-device db fuse\n", 2),
            ("kiln-policy 1\nallow-device db /dev/fuse rx\n", 2),
            ("kiln-policy 1\nallow-device db /dev/fuse r w\n", 2),
            ("kiln-policy 1\nallow-everything\n", 2),
        ] {
            assert_eq!(RootPolicy::parse(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn only_dev_and_the_roots_policy_allow_it() {
        let judge = |names: &[&str], stage: &str, policy: &RootPolicy| -> Vec<bool> {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            undoing([("db", &names)], stage, policy).iter().map(|one| one.allowed).collect()
        };
        let none = RootPolicy::default();
        assert!(judge(&["CHOWN", "NET_ADMIN", "SYS_PTRACE"], "prod", &none).is_empty());
        let admin = ["SYS_ADMIN", "SYS_MODULE"];
        assert_eq!(judge(&admin, "dev", &none), [true, true]);
        assert_eq!(judge(&admin, "prod", &none), [false, false]);
        let policy = RootPolicy::parse("kiln-policy 1\nallow-capability db SYS_ADMIN\n").unwrap();
        assert_eq!(judge(&admin, "prod", &policy), [true, false]);
    }
}
