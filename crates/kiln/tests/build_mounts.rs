//! RUN --mount and what a build may use, through the real sandbox; and steps that misbehave.

mod common;

use std::os::unix::net::UnixListener;

use common::{project, world};

#[test]
fn mounts_of_a_step() {
    let world = world().env("API_TOKEN", "halibut-in-the-environment");
    let socket = world.home().join("agent");
    let _agent = UnixListener::bind(&socket).unwrap();
    let compose = format!(
        "name: mounts\nservices:\n  web:\n    build:\n      context: ./web\n      secrets:\n        \
         - file_token\n        - {{ source: env_token, target: api, mode: \"0444\" }}\n      \
         ssh: [\"default={}\"]\n      shm_size: 3m\n      ulimits: {{ nofile: 99 }}\n\
         secrets:\n  file_token: {{ file: ./token }}\n  env_token: {{ environment: API_TOKEN }}\n",
        socket.display()
    );
    let project = project(&world, "mounts", &compose);
    project.write("token", "swordfish-in-a-file\n");
    project.write("web/src/a", "context\n");
    project.write("web/.dockerignore", "src/hidden\n");
    project.write("web/src/hidden", "x");
    project.write(
        "web/Dockerfile",
        "FROM busybox AS build\nRUN mkdir /made && echo stage > /made/b\n\
         FROM busybox\nWORKDIR /w\n\
         RUN --mount=target=ctx --mount=from=build,source=/made/b,target=/one \
         --mount=from=build,target=/rw,rw --mount=type=tmpfs,target=/mem,size=1m \
         --mount=type=cache,target=/cache,mode=0700,uid=5 \
         --mount=type=secret,id=file_token --mount=type=secret,id=api,env=API,target=/api \
         --mount=type=ssh <<EOF\nset -e\n\
         grep -q context ctx/src/a; [ ! -e ctx/src/hidden ]; grep -q stage /one\n\
         ! touch ctx/new 2> /dev/null; touch /rw/new /mem/new\n\
         [ \"$(stat -c %u:%a /cache)\" = 5:700 ]; echo kept > /cache/k\n\
         grep -q swordfish /run/secrets/file_token; cat /run/secrets/file_token\n\
         [ \"$(stat -c %u:%a /run/secrets/file_token)\" = 0:400 ]\n\
         [ \"$(stat -c %a /api)\" = 444 ]; [ \"${#API}\" = 26 ]\n\
         [ -S \"$SSH_AUTH_SOCK\" ]; [ \"$(ulimit -n)\" = 99 ]\n\
         df -k /dev/shm | grep -q 3072\necho all is well > /result\nEOF\n\
         RUN --mount=type=cache,target=/again,id=/cache,mode=0700,uid=5 \
         [ -f /again/k ] && [ ! -e /cache ] && [ ! -e /w/ctx ] && [ ! -e /run/secrets ] && \
         [ ! -e /rw ] && [ ! -e /mem ] && [ ! -e /one ] && [ ! -e /api ] && \
         [ -z \"$SSH_AUTH_SOCK$API\" ]\n\
         CMD [\"busybox\", \"sleep\", \"9\"]\n",
    );
    let output = world.kiln_in(&project, ["bake"]).expect_done();
    assert!(!output.stderr.contains("swordfish"), "{}", output.stderr);
    // What a cache or a secret holds is no input: nothing is to be done again.
    project.write("token", "swordfish-of-another-day\n");
    let again = world.kiln_in(&project, ["bake", "--json"]).expect_done();
    assert!(!again.stdout.contains("swordfish"), "{}", again.stdout);
    let found = std::process::Command::new("grep")
        .args(["-rlE", "swordfish-|halibut-"])
        .arg(world.root())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "a secret was kept");
    let collected = world.kiln_in(&project, ["gc", "--json"]).expect_done().json();
    assert_eq!(collected["collected"]["step_caches"], 0, "it was used just now");
}

/// Bakes a Dockerfile that has to be refused or to fail.
fn refused(dockerfile: &str, code: i32, parts: &[&str]) {
    let world = world();
    let project = project(&world, "bad", "services:\n  web: { build: ./web }\n");
    project.write("web/Dockerfile", dockerfile);
    let output = world.kiln_in(&project, ["bake"]).expect_code(code);
    for part in parts {
        assert!(output.stderr.contains(part), "`{part}` in:\n{}", output.stderr);
    }
}

#[test]
fn what_a_step_may_not_have_is_refused_by_name() {
    for (flag, part) in [
        ("--network=host", "--network=host is refused"),
        ("--security=insecure", "--security=insecure is refused"),
        ("--mount=typ=cache,target=/x", "did you mean type?"),
        ("--mount=type=secret,id=none,required", "secret `none`"),
        ("--mount=type=ssh,required", "SSH agent `default`"),
    ] {
        refused(&format!("FROM busybox\nRUN {flag} true\n"), 2, &["Dockerfile:2", part, "hint:"]);
    }
}

#[test]
fn what_a_step_leaves_running_is_told() {
    let world = world();
    let project = project(&world, "left", "services:\n  web: { build: ./web }\n");
    let dockerfile = "FROM busybox\nRUN sleep 1000 & echo begun > /file\nCMD [\"sleep\", \"9\"]\n";
    project.write("web/Dockerfile", dockerfile);
    let output = world.kiln_in(&project, ["bake"]).expect_done();
    for part in ["Dockerfile:2", "running, which ended with it"] {
        assert!(output.stderr.contains(part), "`{part}` in:\n{}", output.stderr);
    }
}

#[test]
fn a_step_cannot_leave_the_sandbox() {
    refused(
        "FROM busybox\nRUN mount -t tmpfs x /tmp 2> /dev/null && exit 2; \\\n\
         mknod /disk b 8 0 2> /dev/null && cat /disk 2> /dev/null && exit 3; \\\n\
         (echo x > /proc/sysrq-trigger) 2> /dev/null && exit 4; \\\n\
         (echo x > /proc/sys/kernel/hostname) 2> /dev/null && exit 5; \\\n\
         [ $(ls /proc | grep -c '^[0-9]*$') -lt 9 ] || exit 6; \\\n\
         unshare -m true 2> /dev/null && exit 7; \\\n\
         exit 42\n",
        1,
        &["Dockerfile:2", "exit status 42"],
    );
}
