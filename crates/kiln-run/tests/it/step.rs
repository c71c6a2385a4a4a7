//! RUN steps.

use std::path::Path;

use kiln_run::{BindMount, StepExit, StepSpec};

use crate::kit::Kit;

fn step(kit: &Kit, script: &str) -> StepSpec {
    StepSpec {
        lower: kit.lower.clone(),
        upper_dir: kit.dir.path().join("step"),
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![],
        cwd: "/".into(),
        user: String::new(),
        hostname: "builder".into(),
        network: false,
        mounts: vec![],
        stdin: vec![],
        rootful: false,
    }
}

fn run(kit: &Kit, spec: &StepSpec) -> (StepExit, String) {
    let mut text = Vec::new();
    let exit = kit.runtime.run_step(spec, &mut |bytes| text.extend_from_slice(bytes)).unwrap();
    (exit, String::from_utf8(text).unwrap())
}

/// Every path in the upper layer.
fn changes(kit: &Kit) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            out.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                walk(&path, root, out);
            }
        }
    }
    let root = kit.dir.path().join("step/upper");
    let mut out = Vec::new();
    walk(&root, &root, &mut out);
    out.sort();
    out
}

#[test]
fn only_what_the_step_did_is_in_the_upper_layer() {
    let kit = Kit::new();
    let source = kit.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "mounted\n").unwrap();
    let mut spec = step(
        &kit,
        "cat /in/deep/f; cat; echo new > /etc/new; echo z >> /etc/hosts; echo q > /etc/resolv.conf; \
        mkdir /opt; hostname; ip -o link | wc -l; rm /bin/plain; exit 4",
    );
    spec.mounts = vec![BindMount { source, target: "/in/deep".into(), read_only: true }];
    spec.stdin = b"from stdin\n".to_vec();
    let (exit, text) = run(&kit, &spec);
    assert_eq!(exit, StepExit { code: 4, signal: None });
    assert_eq!(text, "mounted\nfrom stdin\nbuilder\n1\n");
    assert_eq!(changes(&kit), ["bin", "bin/plain", "etc", "etc/new", "opt"]);
    kit.assert_clean();
}

#[test]
fn nothing_outlives_a_step() {
    let kit = Kit::new();
    let spec = step(&kit, "setsid sleep 1000 > /dev/null 2>&1 & echo started");
    let (exit, text) = run(&kit, &spec);
    assert_eq!((exit.code, text.as_str()), (0, "started\n"));
    kit.assert_clean();
}

#[test]
fn a_rootful_step_owns_the_tree() {
    let kit = Kit::new();
    let mut spec = step(
        &kit,
        "touch /a && chown 100:101 /a && chmod 4755 /a && mknod /n c 1 3 && \
        stat -c %a:%u:%g /a && chroot / true && grep Seccomp: /proc/self/status && \
        grep CapEff /proc/self/status",
    );
    spec.rootful = true;
    let (exit, text) = run(&kit, &spec);
    assert_eq!(exit.code, 0, "{text}");
    assert!(text.starts_with("4755:100:101\nSeccomp:\t2\n"), "{text}");
    assert_ne!(text.lines().last().unwrap(), "CapEff:\t00000000a80425fb");
    assert_eq!(changes(&kit), ["a", "n"]);
}

#[test]
fn network_is_the_hosts_when_asked_for() {
    let kit = Kit::new();
    let mut spec = step(&kit, "readlink /proc/self/ns/net");
    spec.network = true;
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(run(&kit, &spec).1.trim(), host.to_str().unwrap());
    spec.network = false;
    assert_ne!(run(&kit, &spec).1.trim(), host.to_str().unwrap());
}

#[test]
fn a_step_that_cannot_begin_says_why() {
    let kit = Kit::new();
    let mut spec = step(&kit, "");
    spec.argv = vec!["make".into()];
    let error = kit.runtime.run_step(&spec, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("exec `make`: not found in PATH"), "{error}");
    kit.assert_clean();
}
