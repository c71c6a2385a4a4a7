//! `kiln verify`: recipes that are not reproducible, one for each known cause, are found with
//! step, path and cause; recipes that are reproducible are found to be so.

mod common;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use common::{project, world};
use kiln_testkit::{Output, Project, World};
use serde_json::{Value, json};

/// A recipe with the cause that it has.
struct Recipe {
    name: &'static str,
    dockerfile: &'static str,
    /// Number of the step that diverges.
    step: u64,
    path: &'static str,
    cause: &'static str,
}

const fn recipe(
    name: &'static str,
    dockerfile: &'static str,
    step: u64,
    path: &'static str,
    cause: &'static str,
) -> Recipe {
    Recipe { name, dockerfile, step, path, cause }
}

/// One of 40 names each, so that two orders are hardly ever equal.
const FILES: usize = 40;

const RECIPES: [Recipe; 33] = [
    recipe("date", "ENV A=b\nRUN date > /built", 3, "/built", "time"),
    recipe("epoch", "RUN date +%s > /stamp", 2, "/stamp", "time"),
    recipe("iso", "RUN date +%Y-%m-%dT%H:%M:%S > /stamp", 2, "/stamp", "time"),
    recipe("uptime", "RUN cut -d. -f1 /proc/uptime > /up", 2, "/up", "time"),
    recipe(
        "tar",
        "RUN mkdir /t && touch /t/a && tar cf /t.tar -C /t a && rm -r /t",
        2,
        "/t.tar",
        "time",
    ),
    // The header that gzip writes of a file: its time is in bytes 4 to 7.
    recipe(
        "gzip",
        "RUN s=$(date +%s); o() { printf '%03o' $(($1 & 255)); }; printf \
         \"\\\\037\\\\213\\\\010\\\\000\\\\$(o $s)\\\\$(o $((s >> 8)))\\\\$(o $((s >> 16)))\\\\$(o $((s >> 24)))rest\" > /x.gz",
        2,
        "/x.gz",
        "time",
    ),
    recipe(
        "nonce",
        "RUN head -c 16 /dev/urandom | od -An -tx1 | tr -d ' ' > /nonce",
        2,
        "/nonce",
        "random",
    ),
    recipe("uuid", "RUN cat /proc/sys/kernel/random/uuid > /id", 2, "/id", "random"),
    recipe(
        "temporary",
        "RUN mkdir /o && for i in 1 2 3 4 5 6; do mktemp /o/tmp.XXXXXX; done",
        2,
        "/o/tmp.",
        "random",
    ),
    // A name that follows the clock, unlike a random one.
    recipe("dated-name", "RUN mkdir /o && touch /o/$(date | md5sum | cut -c-32)", 2, "/o/", "time"),
    recipe("binary", "RUN head -c 4096 /dev/urandom > /blob", 2, "/blob", "random"),
    recipe(
        "key",
        "RUN (echo '-----BEGIN PRIVATE KEY-----'; head -c 48 /dev/urandom | base64) > /host",
        2,
        "/host",
        "key",
    ),
    recipe(
        "log",
        "RUN mkdir -p /var/log && date > /var/log/setup.log",
        2,
        "/var/log/setup.log",
        "log",
    ),
    recipe(
        "cache",
        "RUN mkdir -p /root/.cache && date > /root/.cache/x",
        2,
        "/root/.cache/x",
        "cache",
    ),
    recipe(
        "order-below",
        "COPY src /src\nRUN find /src -type f > /list",
        3,
        "/list",
        "directory-order",
    ),
    recipe(
        "order-above",
        "RUN mkdir /d && for i in $(seq 1 40); do touch /d/$((i*7919%97)); done; find /d > /list",
        2,
        "/list",
        "directory-order",
    ),
    recipe("archive", "COPY src /src\nRUN tar cf /src.tar /src", 3, "/src.tar", "directory-order"),
    recipe("shuffled", "RUN seq 100 150 | shuf > /list", 2, "/list", "order"),
    recipe("pid", "RUN sh -c 'echo $$ > /pid'; true", 2, "/pid", "pid"),
    recipe("cores", "RUN nproc > /jobs", 2, "/jobs", "cores"),
    recipe(
        "build-id",
        "RUN (printf '\\177ELF\\002\\001\\001\\004\\0\\0\\0\\024\\0\\0\\0\\003\\0\\0\\0GNU\\0'; \
         head -c 20 /dev/urandom; echo text) > /program",
        2,
        "/program",
        "build-id",
    ),
    recipe(
        "address",
        "RUN grep stack /proc/self/maps | cut -d- -f1 > /stack",
        2,
        "/stack",
        "address",
    ),
    recipe("file-system", "COPY src /src\nRUN stat -c %s /src > /size", 3, "/size", "file-system"),
    // Guesses from the bytes alone would be wrong here: a digest looks like a random value.
    recipe("pid-digest", "RUN sh -c 'echo $$' | sha256sum > /pid", 2, "/pid", "pid"),
    recipe("date-digest", "RUN date | md5sum > /day", 2, "/day", "time"),
    recipe("cores-digest", "RUN nproc | sha256sum > /jobs", 2, "/jobs", "cores"),
    recipe(
        "inode-digest",
        "COPY src /src\nRUN stat -c %i /src/* | sha256sum > /i",
        3,
        "/i",
        "file-system",
    ),
    recipe("room", "RUN stat -f -c '%T %b' / > /room", 2, "/room", "file-system"),
    recipe("boot", "RUN cat /proc/sys/kernel/random/boot_id > /boot", 2, "/boot", "machine"),
    recipe("memory", "RUN grep MemTotal /proc/meminfo > /memory", 2, "/memory", "machine"),
    recipe(
        "model",
        "RUN grep -m1 'model name' /proc/cpuinfo | sha1sum > /model",
        2,
        "/model",
        "machine",
    ),
    recipe("kernel", "RUN cat /proc/version > /kernel", 2, "/kernel", "machine"),
    recipe("command-line", "RUN cat /proc/cmdline > /line", 2, "/line", "machine"),
];

/// What an honest recipe does.
const GOOD: [(&str, &str); 5] = [
    // gzip refuses what has other names, and tar would write some files as links to others.
    (
        "links",
        "COPY src /src\nRUN stat -c %h /src/* > /links && gzip -k /src/7 && cp -a /src /d && \
         stat -c %h /d/* > /copies",
    ),
    ("sorted", "COPY src /src\nRUN find /src | sort > /list; tar c /list | gzip > /x; rm /x"),
    (
        "surroundings",
        "RUN env | sort > /env; id > /id; hostname > /host; ulimit -a > /limits; umask > /umask; \
         cut -d' ' -f2 /proc/mounts | sort > /mounts; pwd > /pwd",
    ),
    (
        "kinds",
        "RUN mkdir -m 1777 /d && cd /d && touch new && ln new second && ln -s new third && mkfifo p \
         && chown 5:6 new && head -c 100000 /dev/zero > sparse && touch -d @1 old; rm -r /etc || true",
    ),
    (
        "epoch",
        "WORKDIR /w\nRUN date -d @$SOURCE_DATE_EPOCH > built\nFROM scratch\nCOPY --from=0 /w /w",
    ),
];

fn compose(names: impl Iterator<Item = &'static str>) -> String {
    let mut out = "name: proof\nservices:\n".to_owned();
    for name in names {
        let _ = writeln!(out, "  {name}: {{ build: {{ context: ., dockerfile: {name}.docker }} }}");
    }
    out
}

fn write(project: &Project, name: &str, dockerfile: &str) {
    project.write(&format!("{name}.docker"), format!("FROM busybox\n{dockerfile}\n"));
}

fn sources(project: &Project) {
    for number in 0..FILES {
        project.write(&format!("src/{}", number * 7919 % 97), "x\n");
    }
    project.write("src/7", "seven\n");
}

#[track_caller]
fn step<'a>(data: &'a Value, service: &str, number: u64) -> &'a Value {
    let steps = data["services"][service]["steps"].as_array();
    let steps = steps.unwrap_or_else(|| panic!("no steps of {service} in {data:#}"));
    let step = steps.iter().find(|step| step["number"] == number);
    step.unwrap_or_else(|| panic!("no step {number} of {service}: {steps:#?}"))
}

fn verify(world: &World, project: &Project, args: &[&str]) -> Output {
    let args = [&["verify", "--json"], args].concat();
    world.call(args).dir(project.dir()).patience(common::PATIENCE * 6).run().unwrap()
}

#[test]
fn every_cause_is_found_and_named() {
    let world = world();
    let project = project(&world, "causes", &compose(RECIPES.iter().map(|recipe| recipe.name)));
    sources(&project);
    for recipe in &RECIPES {
        write(&project, recipe.name, recipe.dockerfile);
    }
    let output = verify(&world, &project, &[]).expect_code(3);
    let data = output.json();
    assert_eq!(data["verdict"], "diverged");
    assert_eq!(data["bases"]["busybox"]["verdict"], "same", "{:#}", data["bases"]);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for recipe in RECIPES.iter().filter(|recipe| recipe.name != "cores" || cores > 1) {
        let service = &data["services"][recipe.name];
        assert_eq!(service["first"], recipe.step, "{}: {service:#}", recipe.name);
        let step = step(&data, recipe.name, recipe.step);
        let first = &step["difference"]["first"];
        assert_eq!(first["cause"], recipe.cause, "{}: {step:#}", recipe.name);
        let path = first["path"].as_str().unwrap_or_default();
        assert!(path.starts_with(recipe.path), "{}: {step:#}", recipe.name);
        for before in 1..recipe.step {
            let earlier = self::step(&data, recipe.name, before);
            assert_eq!(earlier["verdict"], "same", "{}: {earlier:#}", recipe.name);
        }
        for key in ["words", "cure", "evidence"] {
            assert!(first[key].as_str().is_some_and(|text| text.len() >= 3), "{key}: {first:#}");
        }
    }
    let names = step(&data, "temporary", 2);
    assert_eq!(names["difference"]["causes"], json!({ "random value": 12 }), "{names:#}");
    let date = step(&data, "date", 3);
    assert_eq!((&date["file"], &date["line"]), (&"causes/date.docker".into(), &3.into()));
    let first = &date["difference"]["first"];
    assert!(
        first["offset"].is_u64() && first["first"]["hex"] != first["second"]["hex"],
        "{date:#}"
    );
}

#[test]
fn what_is_reproducible_is_found_the_same_again_and_again() {
    let world = world();
    let project = project(&world, "good", &compose(GOOD.iter().map(|(name, _)| *name)));
    sources(&project);
    for (name, dockerfile) in GOOD {
        write(&project, name, dockerfile);
    }
    for _ in 0..3 {
        let data = verify(&world, &project, &[]).expect_code(0).json();
        assert_eq!(data["verdict"], "same", "{data:#}");
        for (name, _) in GOOD {
            assert_eq!(data["services"][name]["first"], Value::Null);
        }
    }
    let data = verify(&world, &project, &["--deep"]).expect_code(0).json();
    assert_eq!(data["images"]["first"], data["images"]["second"]);
}

/// What no run can vary is said, and what a file tells of it.
#[test]
fn nothing_is_said_of_bytes_that_were_not_read() {
    let world = world();
    let project = project(&world, "v", "name: v\nservices:\n  a: { build: ./a, command: [x] }\n");
    project.write("a/Dockerfile", "FROM busybox\nCOPY file /\nRUN true\n");
    project.write("a/file", "what is stored");
    verify(&world, &project, &[]).expect_done();
    // As a disk does it: no time tells.
    let hex = kiln_core::Digest::of("what is stored").hex();
    let path = world.root().join("objects").join(&hex[..2]).join(&hex[2..]);
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, "what is rotten").unwrap();
    std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
    for args in [&[][..], &["a"]] {
        let told = verify(&world, &project, args).expect_code(1).to_string();
        assert!(told.contains(&hex[..12]) && told.contains("kiln fsck"), "{told}");
    }
}

#[test]
fn what_cannot_be_varied_is_named() {
    let world = world();
    let project = project(&world, "telling", &compose(["telling"].into_iter()));
    write(
        &project,
        "telling",
        "RUN uname -r > /kernel\nRUN date +'(c) %Y somebody' > /year\nRUN date +%B > /month\n\
         RUN echo nothing > /nothing",
    );
    let data = verify(&world, &project, &[]).expect_code(0).json();
    let missing = data["conditions"]["not_varied"].to_string();
    for what in ["uname(2)", "sysinfo(2)", "CPUID", "calendar"] {
        assert!(missing.contains(what), "{what} in {missing}");
    }
    for (number, path, what) in
        [(2, "/kernel", "uname(2)"), (3, "/year", "year"), (4, "/month", "month")]
    {
        let step = step(&data, "telling", number);
        let notes = step["notes"].to_string();
        assert!(notes.contains(path) && notes.contains(what), "{what}: {step:#}");
    }
    assert!(step(&data, "telling", 5)["notes"].is_null(), "{data:#}");
}

#[test]
fn what_stays_behind_in_a_stage_is_told_and_no_fault() {
    let world = world();
    let names = ["behind", "copied", "own"];
    let project = project(&world, "stages", &compose(names.into_iter()));
    let build = "RUN mkdir /out && echo program > /out/program && date +%s%N > /out.log";
    let image = |what: &str| format!("{build}\nFROM scratch\nCOPY --from=0 {what} /\n");
    write(&project, "behind", &image("/out"));
    write(&project, "copied", &image("/out.log"));
    write(&project, "own", build);
    for (name, code) in [("behind", 0), ("copied", 3), ("own", 3)] {
        let data = verify(&world, &project, &[name]).expect_code(code).json();
        let verdict = if code == 0 { "left-behind" } else { "diverged" };
        assert_eq!(data["verdict"], verdict, "{name}: {data:#}");
        let step = step(&data, name, 2);
        assert_eq!(step["difference"]["first"]["path"], "/out.log", "{step:#}");
        assert_eq!(step["difference"]["left_behind"], u64::from(code == 0), "{step:#}");
    }
    let strict = verify(&world, &project, &["behind", "--strict"]).expect_code(3).json();
    assert_eq!(strict["verdict"], "left-behind");
    verify(&world, &project, &["behind", "--deep"]).expect_code(0);
    let told = world.call(["verify", "behind"]).dir(project.dir()).run().unwrap().expect_done();
    for part in ["left behind", "no later COPY takes", "the same bits"] {
        assert!(told.stdout.contains(part), "{part} in {told}");
    }
}

#[test]
fn from_nothing_the_first_step_that_diverges_is_named() {
    let world = world();
    let project = project(&world, "deep", &compose(["web"].into_iter()));
    write(&project, "web", "RUN echo fine > /fine\nRUN date +%s > /when\nRUN cp /when /copy");
    let data = verify(&world, &project, &["--deep"]).expect_code(3).json();
    assert_eq!(data["services"]["web"]["first"], 3);
    let diverged = step(&data, "web", 3);
    assert_eq!(diverged["difference"]["first"]["path"], "/when");
    assert_eq!(diverged["difference"]["first"]["cause"], "time");
    assert_eq!(step(&data, "web", 2)["verdict"], "same");
    assert_eq!(step(&data, "web", 4)["verdict"], "not-run");
    // Nothing of it stays.
    assert_eq!(world.scratch(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_step_that_fails_now_and_then_shows_its_last_lines() {
    let world = world();
    let project = project(&world, "fails", &compose(["web"].into_iter()));
    // The second run's clocks since boot are weeks ahead.
    let script = "RUN up=$(cut -d. -f1 /proc/uptime); test -e /seen || \
                  { [ $((up % 100000000)) -lt 2900000 ] || { echo too late; exit 7; }; }";
    write(&project, "web", script);
    let data = verify(&world, &project, &[]).expect_code(3).json();
    let step = step(&data, "web", 2);
    assert_eq!(step["failure"]["run"], 2, "{step:#}");
    assert_eq!(step["failure"]["how"], "exit status 7");
    assert_eq!(step["failure"]["output"][0], "too late");
}

/// Answers every request with another number.
fn counter() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let body = format!("answer {number}\n");
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    port
}

#[test]
fn inputs_that_differ_are_called_inputs() {
    let world = world();
    let project = project(&world, "inputs", &compose(["fetches", "dates"].into_iter()));
    let port = counter();
    let fetch = format!("RUN --network=default wget -q -O /got http://169.254.1.1:{port}/");
    write(&project, "fetches", &fetch);
    write(&project, "dates", "RUN --network=default date > /built");
    let data = verify(&world, &project, &[]).expect_code(3).json();
    let fetches = step(&data, "fetches", 2);
    assert_eq!(fetches["verdict"], "inputs", "{fetches:#}");
    assert_eq!(fetches["difference"]["first"]["path"], "/got");
    // Having the network is no excuse for what does not come from there.
    let dates = step(&data, "dates", 2);
    assert_eq!(dates["verdict"], "diverged", "{dates:#}");
    assert_eq!(dates["difference"]["first"]["cause"], "time");
}

#[test]
fn what_a_cache_held_is_an_input() {
    let world = world();
    let project = project(&world, "caches", &compose(["web"].into_iter()));
    // The second bake finds in the cache what the first one left there.
    let step = |text: &str| {
        format!("RUN --mount=type=cache,target=/c echo {text} >> /c/seen; cat /c/seen > /got")
    };
    write(&project, "web", &step("one"));
    world.kiln_in(&project, ["bake"]).expect_done();
    write(&project, "web", &step("two"));
    let data = verify(&world, &project, &[]).expect_code(3).json();
    let found = self::step(&data, "web", 2);
    assert_eq!(found["verdict"], "inputs", "{found:#}");
    assert_eq!(found["difference"]["first"]["path"], "/got");
    assert!(found["why"].as_str().unwrap_or_default().contains("cache"), "{found:#}");
}

#[test]
fn an_image_baked_elsewhere_is_compared() {
    let there = world();
    let elsewhere = project(&there, "web", &compose(["web"].into_iter()));
    write(&elsewhere, "web", "RUN echo text > /file\nCMD [\"true\"]");
    there.kiln_in(&elsewhere, ["export", "--output", "image"]).expect_done();
    let here = world();
    let own = project(&here, "web", &compose(["web"].into_iter()));
    write(&own, "web", "RUN echo text > /file\nCMD [\"true\"]");
    let image = elsewhere.path("image");
    let image = image.to_str().unwrap();
    let data = verify(&here, &own, &["--against", image]).expect_code(0).json();
    assert_eq!(data["verdict"], "same", "{data:#}");
    write(&own, "web", "RUN echo other > /file; chmod 600 /file\nCMD [\"false\"]");
    let data = verify(&here, &own, &["--against", image]).expect_code(3).json();
    let against = &data["against"];
    let first = &against["difference"]["first"];
    assert_eq!((&first["path"], &first["kind"]), (&"/file".into(), &"content".into()), "{data:#}");
    assert_eq!(first["offset"], 0);
    let keys = against["config"].to_string();
    assert!(keys.contains("false") && keys.contains("true"), "{data:#}");
    verify(&here, &own, &["--against", "nowhere"]).expect_code(2);
}

#[test]
fn a_date_of_today_is_a_note() {
    let world = world();
    let project = project(&world, "today", &compose(["web"].into_iter()));
    write(&project, "web", "RUN date +%Y-%m-%d > /day");
    let data = verify(&world, &project, &[]).expect_code(0).json();
    let notes = step(&data, "web", 2)["notes"].to_string();
    assert!(notes.contains("/day holds the date of today"), "{notes}");
}

#[test]
fn a_person_sees_step_path_bytes_cause_and_cure() {
    let world = world();
    let project = project(&world, "words", &compose(["web"].into_iter()));
    write(&project, "web", "RUN date +%s > /stamp; date > /built");
    let output = world.kiln_in(&project, ["verify"]).expect_code(3);
    for text in [
        "DIVERGED",
        "web: step 2 at words/web.docker:2",
        "/built differs from byte",
        "the first run",
        "the second run",
        "cause  time stamp: both are the time of their run",
        "SOURCE_DATE_EPOCH",
        "1 more path differs; by cause: 2 time stamp",
        "proof: not the same bits",
    ] {
        assert!(output.stdout.contains(text), "{text}\n{output}");
    }
    let unknown = world.kiln_in(&project, ["verify", "nothing"]).expect_code(2);
    assert!(unknown.stderr.contains("no service `nothing`"), "{unknown}");
}
