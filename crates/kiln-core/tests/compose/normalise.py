"""Reads what `docker-compose config` prints and writes the parts that Kiln's model expresses too,
in one form for each thing, as JSON. It leans on Docker's own readers of sizes, durations and words,
so that it is a second opinion and no second implementation."""
import json
import shlex
import sys

import yaml
from compose.timeparse import timeparse
from docker.utils import parse_bytes


def undollar(value):
    """`config` doubles dollar signs so that its output can be read again."""
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, list):
        return [undollar(item) for item in value]
    if isinstance(value, dict):
        return {key: undollar(item) for key, item in value.items()}
    return value


def words(value):
    return shlex.split(value) if isinstance(value, str) else value


def many(value):
    return value if isinstance(value, list) else [value]


def port(value):
    if isinstance(value, dict):
        host = value.get("published", 0)
        address, target = value.get("host_ip", ""), value["target"]
        return f"{address}|{host}|{target}|{value.get('protocol', 'tcp')}"
    text, _, protocol = str(value).partition("/")
    parts = text.rsplit(":", 2)
    target = parts.pop()
    host = parts.pop() if parts else "0"
    address = parts.pop() if parts else ""
    return f"{address}|{host or 0}|{target}|{protocol or 'tcp'}"


def volume(value):
    if isinstance(value, dict):
        mode = "ro" if value.get("read_only") else "rw"
        return f"{value.get('source', '')}|{value['target']}|{mode}"
    parts = value.split(":")
    if len(parts) == 1:
        return f"|{parts[0]}|rw"
    return "|".join([parts[0], parts[1], parts[2] if len(parts) > 2 else "rw"])


def file(value, top, folder):
    if isinstance(value, str):
        value = {"source": value}
    target = value.get("target", value["source"])
    if not target.startswith("/"):
        target = folder + target
    uid, gid = value.get("uid", "0"), value.get("gid", "0")
    path = top[value["source"]]["file"]
    return f"{path}|{target}|{uid}|{gid}|{value.get('mode', 0o444):o}"


def health(value):
    out = {}
    test = value.get("test")
    if test is not None:
        out["test"] = ["CMD-SHELL", test] if isinstance(test, str) else test
    for key in ("interval", "timeout", "start_period"):
        if key in value:
            out[key] = round(timeparse(value[key]) * 10**9)
    if "retries" in value:
        out["retries"] = value["retries"]
    return out


def ulimit(value):
    return [value["soft"], value["hard"]] if isinstance(value, dict) else [value, value]


def service(value, project):
    out = {}
    for key in ("hostname", "user", "working_dir", "stop_signal", "read_only", "restart"):
        if key in value:
            out[key] = value[key]
    out["init"] = value.get("init", False)
    for key in ("command", "entrypoint"):
        if key in value:
            out[key] = words(value[key])
    # A name without a value anywhere stays null here; Kiln leaves it out.
    environment = value.get("environment", {}).items()
    out["environment"] = {name: str(text) for name, text in environment if text is not None}
    out["ports"] = sorted(port(item) for item in value.get("ports", []))
    out["expose"] = sorted(str(item) for item in value.get("expose", []))
    out["volumes"] = sorted(volume(item) for item in value.get("volumes", []))
    out["tmpfs"] = sorted(many(value.get("tmpfs", [])))
    out["depends_on"] = {
        name: item["condition"] for name, item in value.get("depends_on", {}).items()
    }
    if "healthcheck" in value:
        out["healthcheck"] = health(value["healthcheck"])
    out["ulimits"] = {name: ulimit(item) for name, item in value.get("ulimits", {}).items()}
    out["cap_add"] = sorted(value.get("cap_add", []))
    out["cap_drop"] = sorted(value.get("cap_drop", []))
    hosts = value.get("extra_hosts", {})
    out["extra_hosts"] = dict(item.split(":", 1) for item in hosts) if isinstance(hosts, list) else hosts
    for key in ("mem_limit", "shm_size"):
        if key in value:
            out[key] = parse_bytes(value[key])
    limits = value.get("deploy", {}).get("resources", {}).get("limits", {})
    if "memory" in limits:
        out["mem_limit"] = parse_bytes(limits["memory"])
    cpus = value.get("cpus", limits.get("cpus"))
    if cpus is not None:
        out["nano_cpus"] = round(float(cpus) * 10**9)
    if "pids_limit" in value:
        out["pids_limit"] = value["pids_limit"]
    if "stop_grace_period" in value:
        out["stop_grace_period"] = round(timeparse(value["stop_grace_period"]) * 10**9)
    build = value.get("build")
    if build:
        args = build.get("args", {})
        out["build"] = {
            "context": build["context"],
            "dockerfile": build["context"] + "/" + build.get("dockerfile", "Dockerfile"),
            "target": build.get("target"),
            "args": {name: str(text) for name, text in args.items()},
        }
    configs, secrets = project.get("configs", {}), project.get("secrets", {})
    out["configs"] = sorted(file(item, configs, "/") for item in value.get("configs", []))
    out["secrets"] = sorted(
        file(item, secrets, "/run/secrets/") for item in value.get("secrets", [])
    )
    networks = value.get("networks") or {}
    out["aliases"] = sorted((networks.get("default") or {}).get("aliases", []))
    return out


def main():
    project = undollar(yaml.safe_load(sys.stdin))
    services = project["services"].items()
    json.dump(
        {
            "services": {name: service(value, project) for name, value in services},
            "volumes": sorted(project.get("volumes", {})),
        },
        sys.stdout,
    )


main()
