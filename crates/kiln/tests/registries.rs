//! As whom registries are asked, and which: by the files of whoever gives the command, which the
//! agent never opens.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use kiln_testkit::registry::{Image, PASSWORD, Tokens, USER};
use kiln_testkit::{Call, Output, Project, Registry, World};

/// A user: a home, and a root whose agent was started by somebody else.
struct User {
    world: World,
    home: PathBuf,
}

impl User {
    fn new() -> Self {
        let world = World::new(env!("CARGO_BIN_EXE_kiln"))
            .env("HOME", "/nonexistent")
            .env("XDG_RUNTIME_DIR", "/nonexistent")
            .env("DOCKER_CONFIG", "")
            .env("REGISTRY_AUTH_FILE", "");
        world.kiln(["images"]).expect_done();
        let home = world.home().join("home");
        fs::create_dir_all(home.join("run")).unwrap();
        Self { world, home }
    }

    fn project(&self, image: &str) -> Project {
        let compose = format!("name: strange\nservices:\n  web:\n    image: {image}\n");
        self.world.project("strange", &compose)
    }

    fn call(&self, project: &Project, args: &[&str]) -> Call {
        self.as_user(self.world.call(args).dir(project.dir()))
    }

    fn as_user(&self, call: Call) -> Call {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.home.join("bin").display());
        call.env("HOME", &self.home).env("XDG_RUNTIME_DIR", self.home.join("run")).env("PATH", path)
    }

    /// Gets the image of a project, or does not.
    fn fetch(&self, project: &Project) -> Output {
        self.call(project, &["lock", "--fetch"]).run().unwrap()
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.home.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

fn image() -> Image {
    Image::new().file("hello.txt", b"hello\n")
}

#[test]
fn who_has_logged_in_gets_a_private_image() {
    let user = User::new();
    let registry = Registry::options().basic().start();
    registry.push(&image(), "team/app:1");
    let project = user.project(&format!("{}/team/app:1", registry.host()));
    let refused = user.fetch(&project).expect_code(1);
    for part in ["gives no access", &format!("kiln login {}", registry.host())] {
        assert!(refused.stderr.contains(part), "`{part}` in {refused}");
    }
    let login = ["login", "-u", USER, "--password-stdin", &registry.host()];
    user.call(&project, &login).stdin(PASSWORD).run().unwrap().expect_done();
    user.fetch(&project).expect_done();
    // Everybody else is still nobody: the agent has kept nothing.
    let other = user.world.project("other", &project.read("compose.yaml"));
    let update = user.world.kiln_in(&other, ["lock"]).expect_code(1);
    assert!(update.stderr.contains("gives no access"), "{update}");
    let kept = Call::new("grep").args(["-rl", PASSWORD]).arg(user.world.root()).run().unwrap();
    assert_eq!(kept.stdout, "");
}

#[test]
fn what_podman_has_kept_counts_and_tokens_are_had_with_it() {
    let user = User::new();
    let tokens = Tokens::start().private();
    let registry = Registry::options().tokens(&tokens).start();
    registry.push(&image(), "team/app:1");
    let project = user.project(&format!("{}/team/app:1", registry.host()));
    user.fetch(&project).expect_code(1);
    let login = Call::new("skopeo").args(["login", "--tls-verify=false", "-u", USER]);
    let login = login.args(["--password-stdin", &registry.host()]).stdin(PASSWORD);
    user.as_user(login).run_ok().unwrap();
    assert!(user.home.join("run/containers/auth.json").exists());
    user.fetch(&project).expect_done();
    assert!(tokens.asked().iter().any(|asked| asked.contains("repository:team/app:pull")));
}

/// A helper that has one name and password, and notes who runs it.
fn helper(user: &User, answer: &str) {
    let script = format!(
        "#!/bin/sh\nread -r server\necho \"$server $HOME\" >> \"$HOME/asked\"\n\
         tr '\\0' ' ' < /proc/$PPID/cmdline >> \"$HOME/by\"\n{answer}\n"
    );
    let path = user.write("bin/docker-credential-safe", &script);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    user.write(".docker/config.json", "{ \"credsStore\": \"safe\" }");
}

#[test]
fn a_credential_helper_is_run_by_the_users_own_process() {
    let user = User::new();
    let registry = Registry::options().basic().start();
    registry.push(&image(), "team/app:1");
    let project = user.project(&format!("{}/team/app:1", registry.host()));
    helper(&user, "echo 'the safe is locked' >&2; exit 1");
    let refused = user.fetch(&project).expect_code(1);
    assert!(
        refused.stderr.contains("docker-credential-safe get`: the safe is locked"),
        "{refused}"
    );
    helper(&user, &format!("echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'"));
    user.fetch(&project).expect_done();
    let read = |name: &str| fs::read_to_string(user.home.join(name)).unwrap();
    let asked = format!("{} {}\n", registry.host(), user.home.display());
    assert_eq!(read("asked"), asked.repeat(2));
    assert!(
        read("by").contains("lock --fetch") && !read("by").contains(" agent"),
        "{}",
        read("by")
    );
    // What is there asks nobody.
    user.call(&project, &["pull"]).run().unwrap().expect_done();
    assert_eq!(read("asked"), asked.repeat(2));
}

#[test]
fn a_registry_that_wants_nothing_has_no_helper_run() {
    let user = User::new();
    let registry = Registry::start();
    registry.push(&image(), "team/app:1");
    helper(&user, "exit 1");
    let project = user.project(&format!("{}/team/app:1", registry.host()));
    user.fetch(&project).expect_done();
    assert!(!user.home.join("asked").exists());
}

#[test]
fn the_users_own_files_say_what_a_name_means() {
    let user = User::new();
    let registry = Registry::start();
    registry.push(&image(), "copies/app:1");
    let conf = |text: &str| user.write(".config/containers/registries.conf", text);
    conf(&format!(
        "[aliases]\napp = 'shop.invalid/team/app'\n[[registry]]\nprefix = 'shop.invalid/team'\n\
         location = '{}/copies'\n",
        registry.host()
    ));
    let project = user.project("app:1");
    user.fetch(&project).expect_done();
    // The lock has the whole name, and no place of this host.
    let lock = project.read("kiln.lock");
    assert!(lock.contains("reference = \"shop.invalid/team/app:1\""), "{lock}");
    assert!(!lock.contains(&registry.host()), "{lock}");

    let path = conf("[[registry]]\nlocation = 'shop.invalid'\nblocked = true\n");
    let other = user.world.project("other", "services:\n  web:\n    image: shop.invalid/x\n");
    let refused = user.fetch(&other).expect_code(1);
    let words = format!("is blocked by {}", path.display());
    assert!(refused.stderr.contains(&words), "{words} in {refused}");
    for (text, what) in [
        (
            "unqualified-search-registries = ['a.invalid', 'b.invalid']\n",
            "a.invalid or at b.invalid",
        ),
        ("[[registry]\n", "registries.conf: "),
    ] {
        conf(text);
        let other = user.world.project("third", "services:\n  web:\n    image: x\n");
        let refused = user.fetch(&other).expect_code(2);
        assert!(refused.stderr.contains(what), "{what} in {refused}");
    }
}
