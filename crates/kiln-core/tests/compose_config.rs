//! Kiln's reading of a project against that of Debian's `docker-compose config`, over the projects
//! in `tests/compose/`: the parts that both express, in one form (`tests/compose/normalise.py`).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_core::compose::{
    Condition, FileSource, LoadRequest, MountSource, Protocol, Restart, Service, load,
};
use serde_json::{Map, Value, json};

/// Variables of the process, for both readers.
const ENV: [(&str, &str); 2] = [("FROM_PROCESS", "proc"), ("OVERRIDDEN", "process")];

fn dir(project: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose").join(project)
}

/// Compares both readings of `files` of `project`.
fn compare(project: &str, files: &[&str]) {
    if !has_docker_compose() {
        assert!(
            std::env::var_os("KILN_TEST_REQUIRE").is_none(),
            "docker-compose is missing, and KILN_TEST_REQUIRE is set"
        );
        eprintln!("skipped: docker-compose (Debian's package of that name) is not installed");
        return;
    }
    let theirs = docker_compose(project, files);
    let ours = kiln(project, files);
    for (name, service) in theirs["services"].as_object().unwrap() {
        for (key, value) in service.as_object().unwrap() {
            assert_eq!(ours["services"][name][key], *value, "{project}: {name}.{key}");
        }
    }
    assert_eq!(ours, theirs, "{project}");
}

fn has_docker_compose() -> bool {
    let version = Command::new("docker-compose").arg("version").output();
    version.is_ok_and(|output| output.status.success())
}

fn docker_compose(project: &str, files: &[&str]) -> Value {
    let mut command = Command::new("docker-compose");
    command.current_dir(dir(project)).args(["--project-name", "fixture"]);
    for file in files {
        command.args(["--file", file]);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("HOME", "/root").envs(ENV).arg("config");
    let config = command.output().unwrap();
    assert!(config.status.success(), "{project}: {}", String::from_utf8_lossy(&config.stderr));

    // The interpreter that Debian's docker-compose and its libraries are packaged for.
    let mut normalise = Command::new("/usr/bin/python3")
        .arg(dir("normalise.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    normalise.stdin.take().unwrap().write_all(&config.stdout).unwrap();
    let output = normalise.wait_with_output().unwrap();
    assert!(output.status.success(), "{project}: normalise.py failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn kiln(project: &str, files: &[&str]) -> Value {
    let env = ENV.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let read = |path: &Path| std::fs::read(path);
    let request = LoadRequest {
        files: files.iter().map(|file| dir(project).join(file)).collect(),
        dir: dir(project),
        project_dir: None,
        env_files: Vec::new(),
        env: env.chain([("HOME".to_owned(), "/root".to_owned())]).collect(),
        profiles: Vec::new(),
        named: Vec::new(),
        project_name: Some("fixture".into()),
        read: &read,
        real_dir: &Path::to_owned,
    };
    let project = load(&request).unwrap_or_else(|error| panic!("{error}"));
    let services: Map<String, Value> =
        project.services.iter().map(|(name, service)| (name.clone(), normal(service))).collect();
    json!({ "services": services, "volumes": project.volumes })
}

fn normal(service: &Service) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            out.insert(key.into(), value);
        }
    };
    put("hostname", service.hostname.as_ref().map(|text| json!(text)));
    put("user", service.user.as_ref().map(|text| json!(text)));
    put("working_dir", service.working_dir.as_ref().map(|text| json!(text)));
    put("stop_signal", service.stop_signal.as_ref().map(|text| json!(text)));
    put("read_only", service.read_only.map(|value| json!(value)));
    put("restart", restart(service).map(|text| json!(text)));
    put("init", Some(json!(service.init)));
    put("command", service.command.as_ref().map(|words| json!(words)));
    put("entrypoint", service.entrypoint.as_ref().map(|words| json!(words)));
    put("environment", Some(json!(service.environment)));
    put(
        "ports",
        Some(sorted(service.ports.iter().map(|port| {
            let ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            format!("{ip}|{}|{}|{}", port.published, port.target, protocol(port.protocol))
        }))),
    );
    put("expose", Some(sorted(service.expose.iter().map(|port| port.target.to_string()))));
    put(
        "volumes",
        Some(sorted(service.volumes.iter().map(|mount| {
            let source = match &mount.source {
                MountSource::Volume(name) | MountSource::External(name) => name.clone(),
                MountSource::Bind(path) => path.display().to_string(),
                MountSource::Anonymous | MountSource::Volatile => String::new(),
            };
            format!("{source}|{}|{}", mount.target, if mount.read_only { "ro" } else { "rw" })
        }))),
    );
    put("tmpfs", Some(sorted(service.tmpfs.iter().map(|tmpfs| tmpfs.target.clone()))));
    let conditions: BTreeMap<&String, &str> = service
        .depends_on
        .iter()
        .map(|(on, dependency)| (on, condition(dependency.condition)))
        .collect();
    put("depends_on", Some(json!(conditions)));
    put(
        "healthcheck",
        service.healthcheck.as_ref().map(|check| {
            let mut out = Map::new();
            if !check.test.is_empty() {
                out.insert("test".into(), json!(check.test));
            }
            for (key, value) in [
                ("interval", check.interval),
                ("timeout", check.timeout),
                ("start_period", check.start_period),
                ("retries", check.retries.map(u64::from)),
            ] {
                if let Some(value) = value {
                    out.insert(key.into(), json!(value));
                }
            }
            Value::Object(out)
        }),
    );
    put("ulimits", Some(json!(service.ulimits)));
    put("cap_add", Some(json!(service.cap_add)));
    put("cap_drop", Some(json!(service.cap_drop)));
    let hosts: BTreeMap<_, _> = service.extra_hosts.iter().cloned().collect();
    put("extra_hosts", Some(json!(hosts)));
    put("mem_limit", service.limits.memory.map(|value| json!(value)));
    put("nano_cpus", service.limits.nano_cpus.map(|value| json!(value)));
    put("pids_limit", service.limits.pids.map(|value| json!(value)));
    put("shm_size", service.shm_size.map(|value| json!(value)));
    put("stop_grace_period", service.stop_grace_period.map(|value| json!(value)));
    put(
        "build",
        service.build.as_ref().map(|build| {
            json!({
                "context": build.context,
                "dockerfile": build.dockerfile,
                "target": build.target,
                "args": build.args,
            })
        }),
    );
    put("configs", Some(files(service, false)));
    put("secrets", Some(files(service, true)));
    let default = service.networks.as_ref().and_then(|networks| networks.get("default"));
    put("aliases", Some(json!(default.cloned().unwrap_or_default())));
    Value::Object(out)
}

fn files(service: &Service, secret: bool) -> Value {
    sorted(service.files.iter().filter(|file| file.secret == secret).map(|file| {
        let FileSource::File(path) = &file.source else { panic!("the fixtures have only files") };
        format!("{}|{}|{}|{}|{:o}", path.display(), file.target, file.uid, file.gid, file.mode)
    }))
}

fn sorted(items: impl Iterator<Item = String>) -> Value {
    let mut items: Vec<String> = items.collect();
    items.sort();
    json!(items)
}

/// `None` where nothing was stated: the fixtures write no `always`.
fn restart(service: &Service) -> Option<&'static str> {
    match service.restart.unwrap_or_default() {
        Restart::No => Some("no"),
        Restart::OnFailure { .. } => Some("on-failure"),
        Restart::Always => None,
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn condition(condition: Condition) -> &'static str {
    match condition {
        Condition::ServiceStarted => "service_started",
        Condition::ServiceHealthy => "service_healthy",
        Condition::ServiceCompletedSuccessfully => "service_completed_successfully",
    }
}

#[test]
fn interpolation() {
    compare("interpolation", &["compose.yaml"]);
}

#[test]
fn two_files() {
    compare("merge", &["compose.yaml", "over.yaml"]);
}

#[test]
fn anchors() {
    compare("anchors", &["compose.yaml"]);
}

#[test]
fn env_files() {
    compare("env_files", &["compose.yaml"]);
}

#[test]
fn short_and_long_forms() {
    compare("forms", &["compose.yaml"]);
}
