//! Same source, same bits: in another root, from another checkout, by another user's hand, over
//! another kind of store. And what is there already is not made again.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use common::{project, world};
use kiln_testkit::{Call, Output, Project, World};
use serde_json::{Value, json};

const COMPOSE: &str = "name: same
services:
  app:
    build: { context: ./app, args: { GREETING: hello } }
  other:
    build: { context: ./app, target: tools }
";

/// Writes down whatever of its surroundings a step could let slip into an image.
const DOCKERFILE: &str = "FROM busybox AS tools
COPY . /src
RUN mkdir /out && cd /out \\
    && env | sort > env && umask > umask && id > id && hostname > host && pwd > pwd && ulimit -a > limits \\
    && stat -c '%n %a %u %g %Y' /src /src/* /src/deep/* > stat \\
    && cat /proc/mounts | grep -v -e ' / ' | cut -d' ' -f2 | sort > mounts \\
    && echo $$ > pid && touch new && ln new second && ln -s new third && mkfifo pipe \\
    && head -c 100000 /dev/zero > sparse && touch -d @1 old && mkdir sticky && chown 5:6 sticky && chmod 1777 sticky
FROM busybox
ARG GREETING
ENV GREETING=$GREETING
COPY --from=tools /out /out
COPY --from=tools --chown=7:8 --chmod=0640 /src/deep /deep
COPY [\"a file\", \"run\", \"/bin/\"]
RUN echo $GREETING > /greeting; rm /out/old; chmod 0700 /out/pid
CMD [\"run\"]
";

fn write(dir: &Path, order: &[usize]) {
    fs::create_dir_all(dir.join("app/deep/er")).unwrap();
    let files = ["a file", "run", "deep/one", "deep/two", "deep/er/three", "Dockerfile", ".hidden"];
    for &at in order {
        let path = dir.join("app").join(files[at]);
        let text = if files[at] == "Dockerfile" { DOCKERFILE } else { files[at] };
        fs::write(&path, text).unwrap();
        let mode = if files[at] == "run" { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("deep/one", dir.join("app/link")).unwrap();
}

fn sh(dir: &Path, script: &str) {
    Call::new("sh").args(["-ec", script]).dir(dir).run_ok().unwrap();
}

#[track_caller]
fn images(output: &Output) -> Value {
    let mut images = output.json()["images"].clone();
    assert_eq!(images.as_object().map(serde_json::Map::len), Some(2), "{images}");
    for image in images.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        // How many steps were known is the store's history.
        *image = json!({ "tree": image["tree"], "config": image["config"] });
        assert!(image["tree"].is_string() && image["config"].is_string(), "{image}");
    }
    images
}

/// Bakes as a caller with an umask and an environment of their own.
fn bake_oddly(world: &World, project: &Project) -> Output {
    let plain = world.call(["bake", "--json"]);
    let script = format!(
        "umask 077; ulimit -Sn 512; ulimit -Sc unlimited; ulimit -Ss 4096; exec {}",
        plain.line()
    );
    Call::new("sh")
        .args(["-ec", &script])
        .dir(project.path("app/deep"))
        .env("TZ", "Asia/Tokyo")
        .env("LC_ALL", "C")
        .env("HOME", "/nowhere")
        .env("SOURCE_DATE_EPOCH", "12345")
        .env("GREETING", "from outside")
        .run()
        .unwrap()
        .expect_done()
}

#[test]
fn the_same_source_gives_the_same_bits() {
    let one = world();
    let first = project(&one, "first", COMPOSE);
    write(first.dir(), &[0, 1, 2, 3, 4, 5, 6]);
    let expected = images(&one.kiln_in(&first, ["bake", "--json"]).expect_done());

    let two = world();
    let second = project(&two, "a-longer-name-of-the-folder", COMPOSE);
    write(second.dir(), &[6, 5, 4, 3, 2, 1, 0]);
    // As another checkout leaves it: other owner, modes within Git's two, other times.
    sh(
        second.dir(),
        "find app -type f -exec chmod go= {} +; find app -type d -exec chmod 0770 {} +
         find app -exec touch -h -d '2001-02-03 04:05:06' {} +",
    );
    for path in ["app", "app/run", "app/deep", "app/deep/one"] {
        chown(second.path(path), Some(1000), Some(1000)).unwrap();
    }
    assert_eq!(images(&bake_oddly(&two, &second)), expected);

    let links = world().env("KILN_STORE_BACKING", "links");
    let third = project(&links, "third", COMPOSE);
    write(third.dir(), &[3, 1, 4, 0, 5, 2, 6]);
    assert_eq!(images(&links.kiln_in(&third, ["bake", "--json"]).expect_done()), expected);

    // And it would be seen if it were not the same.
    third.write("app/deep/one", "another");
    let other = images(&links.kiln_in(&third, ["bake", "--json"]).expect_done());
    assert_ne!(other["app"]["tree"], expected["app"]["tree"]);
    assert_eq!(other["app"]["config"], expected["app"]["config"]);
}

/// What `bake` says of a service: `unchanged`, or how many of its steps were carried out.
fn said(output: &Output, service: &str) -> String {
    let mut lines = output.stderr.lines().filter(|line| line.contains(&format!(" {service} ")));
    lines.next_back().unwrap_or_else(|| panic!("nothing of `{service}` in {output}")).to_owned()
}

#[test]
fn what_is_baked_is_not_baked_again() {
    let world = world();
    let project = project(&world, "again", COMPOSE);
    write(project.dir(), &[0, 1, 2, 3, 4, 5, 6]);
    let bake = || world.kiln_in(&project, ["bake"]).expect_done();
    let first = bake();
    assert!(said(&first, "app").contains(" of "), "{first}");
    let unchanged = |again: Output| {
        for service in ["app", "other"] {
            assert!(said(&again, service).contains("unchanged"), "{again}");
        }
    };
    unchanged(bake());
    // Neither other times nor another agent is a change.
    sh(project.dir(), "find . -exec touch -h -d '2001-02-03 04:05:06' {} +");
    unchanged(bake());
    common::kill(world.role("agent").pid);
    unchanged(bake());
    // What is no part of any step is none either.
    project.write(".env", "UNUSED=1\n").write("README", "x");
    unchanged(bake());
    // An edit is baked, and its undoing is known from before.
    project.edit("app/a file", "a file", "an edited file");
    let edited = bake();
    assert!(said(&edited, "app").contains(" of "), "{edited}");
    project.edit("app/a file", "an edited file", "a file");
    unchanged(bake());
}
