//! `kiln login` and `kiln logout`: against the distribution's registry, with skopeo as the other
//! program that reads what is written.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln_testkit::registry::{Image, PASSWORD, Tokens, USER};
use kiln_testkit::{Call, Registry, wait_until};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

const PATIENCE: Duration = Duration::from_secs(30);

/// The program, for a user with this home.
fn kiln(home: &Path, args: &[&str]) -> Call {
    Call::new(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .env("HOME", home.as_os_str())
        .env("XDG_RUNTIME_DIR", home.join("run").as_os_str())
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE")
}

/// Whether skopeo, as that user, sees an image.
fn seen_by_skopeo(home: &Path, registry: &Registry) -> bool {
    let name = format!("docker://{}/team/app:1", registry.host());
    let call = Call::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &name]);
    let call = call.env("HOME", home.as_os_str()).env("XDG_RUNTIME_DIR", home.join("run"));
    call.run().unwrap().success()
}

#[test]
fn a_name_and_a_password_are_tried_kept_read_by_others_and_forgotten() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let registry = Registry::options().basic().start();
    registry.push(&Image::new().file("a", b"a"), "team/app:1");
    let host = registry.host();
    assert!(!seen_by_skopeo(home, &registry));
    let login = kiln(home, &["login", "-u", USER, "--password-stdin", &host]);

    let wrong = login.clone().stdin("something else\n").run().unwrap().expect_code(1);
    assert!(wrong.stderr.contains("does not take this name and password"), "{wrong}");
    assert!(!wrong.stderr.contains("something else"), "{wrong}");
    assert!(!home.join(".docker").exists());

    let done = login.clone().stdin(format!("{PASSWORD}\n")).run().unwrap().expect_code(0);
    assert!(done.stdout.contains(&format!("logged in to {host} as {USER}")), "{done}");
    let file = home.join(".docker/config.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(seen_by_skopeo(home, &registry));

    let out = kiln(home, &["logout", &host]).run().unwrap().expect_code(0);
    assert!(out.stdout.contains("logged out") && out.stdout.contains("config.json"), "{out}");
    assert!(!seen_by_skopeo(home, &registry));
    let again = kiln(home, &["logout", &host]).run().unwrap().expect_code(0);
    assert!(again.stdout.contains("nobody was logged in"), "{again}");
}

#[test]
fn a_token_server_decides_too_and_json_is_one_document() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let tokens = Tokens::start().private();
    let registry = Registry::options().tokens(&tokens).start();
    let host = registry.host();
    let login = kiln(home, &["login", "--json", "-u", USER, "--password-stdin", &host]);
    login.clone().stdin("wrong").run().unwrap().expect_code(1);
    let done = login.stdin(PASSWORD).run().unwrap().expect_code(0);
    let file = home.join(".docker/config.json").display().to_string();
    assert_eq!(done.json()["registry"], host);
    assert_eq!(done.json()["file"], file);
    assert!(!done.stdout.contains(PASSWORD));
    let out = kiln(home, &["logout", "--json", &host]).run().unwrap().expect_code(0);
    assert_eq!(out.json()["from"][0], file);
}

#[test]
fn what_cannot_be_is_said() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for (args, code, what) in [
        (&["login", "https://a.example/team"][..], 2, "a registry is a host"),
        (&["login", "127.0.0.1:1"], 2, "there is none"),
        (&["login", "-u", "a:b", "--password-stdin", "127.0.0.1:1"], 2, "has no colon"),
        (
            &["login", "-u", "a", "--password-stdin", "127.0.0.1:1"],
            1,
            "kiln: https://127.0.0.1:1/v2/ cannot be reached",
        ),
        (&["login", "--password-stdin"], 2, "--username"),
    ] {
        let refused = kiln(home, args).stdin("x").run().unwrap().expect_code(code);
        assert!(refused.stderr.contains(what), "{what} in {refused}");
    }
    fs::create_dir(home.join(".docker")).unwrap();
    fs::write(home.join(".docker/config.json"), "{ no").unwrap();
    let refused = kiln(home, &["logout", "127.0.0.1:1"]).run().unwrap().expect_code(2);
    assert!(refused.stderr.contains("config.json: line 1"), "{refused}");
}

/// Both ends of a terminal; what is written to the first is typed.
fn terminal() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = File::options().read(true).write(true).open(name).unwrap();
    (File::from(master), slave)
}

/// What a login on a terminal shows, and how it ends, when `typed` is the password.
fn typed(home: &Path, registry: &Registry, typed: &str) -> (String, Option<i32>) {
    let (mut master, slave) = terminal();
    let before = tcgetattr(&slave).unwrap();
    let end = || Stdio::from(slave.try_clone().unwrap());
    let mut client = Command::new("setsid")
        .args(["--wait", "--ctty", env!("CARGO_BIN_EXE_kiln"), "login", &registry.host()])
        .env("HOME", home)
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE")
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    let mut reader = master.try_clone().unwrap();
    let (give, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 1000];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            let _ = give.send(buffer[..length].to_vec());
        }
    });
    let mut all = Vec::new();
    let wait_for = |all: &mut Vec<u8>, text: &str| {
        wait_until(PATIENCE, &format!("{text:?} on the terminal"), || {
            all.extend(said.try_iter().flatten());
            String::from_utf8_lossy(all).contains(text).then_some(())
        });
    };
    wait_for(&mut all, "Name at");
    master.write_all(format!("{USER}\r").as_bytes()).unwrap();
    wait_for(&mut all, "Password: ");
    let hidden = || !tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ECHO);
    wait_until(PATIENCE, "a hidden password", || hidden().then_some(()));
    master.write_all(typed.as_bytes()).unwrap();
    let code = wait_until(PATIENCE, "its end", || client.try_wait().unwrap()).code();
    wait_for(&mut all, "\n");
    assert_eq!(tcgetattr(&slave).unwrap().local_modes, before.local_modes, "as it was");
    wait_until(PATIENCE, "its words", || {
        all.extend(said.try_iter().flatten());
        let text = String::from_utf8_lossy(&all).into_owned();
        (text.contains("logged in") || text.contains("nothing was kept")).then_some(())
    });
    (String::from_utf8_lossy(&all).into_owned(), code)
}

#[test]
fn what_is_typed_as_a_password_is_not_shown() {
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::options().basic().start();
    // Ctrl-C keeps nothing, and puts the terminal back.
    let (said, code) = typed(home.path(), &registry, "half\u{3}");
    assert_eq!(code, Some(1), "{said}");
    assert!(!said.contains("half") && !home.path().join(".docker").exists(), "{said}");
    // What was taken back by a key does not count.
    let line = format!("x\u{7f}{PASSWORD}\r");
    let (said, code) = typed(home.path(), &registry, &line);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("as {USER}")) && !said.contains(PASSWORD), "{said}");
}
