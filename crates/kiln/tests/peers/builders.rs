//! Those who build: Kiln, Docker Engine with BuildKit and with its classic builder, buildah. All of
//! them on the same base.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kiln_testkit::Call;
use kiln_testkit::peers::{Buildah, Engine, Keep, Network, buildah::Driver};
use serde_json::Value;

use super::case::Case;
use super::images::Image;
use super::tree;
use crate::common;

/// Cases that one builder is given at the same time.
const AT_A_TIME: usize = 3;

/// What somebody made of a case: an image, or what they said against it.
pub(crate) type Outcome = Result<Image, String>;

/// All cases, where their contexts are, and what Kiln makes of them.
pub(crate) struct Baked {
    pub(crate) cases: Vec<(Case, PathBuf)>,
    outcomes: Vec<Outcome>,
    base: Image,
    /// The base's files.
    tar: PathBuf,
    _folder: tempfile::TempDir,
}

impl Baked {
    /// Bakes once for all tests that run at the same time; the last one removes the contexts.
    pub(crate) fn get() -> Arc<Self> {
        static BAKED: Mutex<Weak<Baked>> = Mutex::new(Weak::new());
        let mut baked = BAKED.lock().unwrap_or_else(PoisonError::into_inner);
        baked.upgrade().unwrap_or_else(|| {
            let fresh = Arc::new(Self::bake());
            *baked = Arc::downgrade(&fresh);
            fresh
        })
    }

    fn bake() -> Self {
        let folder = tempfile::Builder::new().prefix("kiln-peers-").tempdir().unwrap();
        let only = std::env::var("KILN_PEERS_ONLY").unwrap_or_default();
        let cases: Vec<(Case, PathBuf)> = super::cases()
            .into_iter()
            .filter(|case| case.name.contains(&only))
            .enumerate()
            .map(|(index, case)| {
                let dir = folder.path().join(format!("case{index}"));
                case.write(&dir);
                for (name, value) in &case.secrets {
                    std::fs::write(secret(&dir, name), value).unwrap();
                }
                (case, dir)
            })
            .collect();
        let world = common::world();
        let compose = "services:\n  base: { image: busybox, command: [sh] }\n";
        let project = common::project(&world, "base", compose);
        let output = world.kiln_in(&project, ["bake", "--json"]).expect_done().json();
        let image = |images: &Value, service: &str| {
            let image = &images["images"][service];
            Image::of_store(&world.root(), &image["tree"], &image["config"])
        };
        let base = image(&output, "base");
        let tar = folder.path().join("base.tar");
        let objects = world.root().join("objects");
        tree::write_tar(&base.tree, &objects, &folder.path().join("base"), &tar);
        let bake = |(case, dir): &(Case, PathBuf)| {
            let name = dir.file_name().unwrap().to_str().unwrap();
            let project =
                common::project(&world, &format!("project-{name}"), &compose_of(case, dir));
            let output = world.kiln_in(&project, ["bake", "--json"]);
            if output.success() {
                Ok(image(&output.json(), "case"))
            } else {
                Err(output.to_string())
            }
        };
        let outcomes = each(&cases, bake);
        Self { cases, outcomes, base, tar, _folder: folder }
    }

    /// Each case with what Kiln made of it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Case, &Path, &Outcome)> {
        let cases = self.cases.iter().zip(&self.outcomes);
        cases.map(|((case, dir), outcome)| (case, dir.as_path(), outcome))
    }
}

fn compose_of(case: &Case, dir: &Path) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    let mut build = vec![
        format!("context: {}", dir.display()),
        format!("dockerfile: {}", case.dockerfile().display()),
    ];
    if !case.args.is_empty() {
        let args = case.args.iter().map(|(key, value)| format!("{key}: {}", quoted(value)));
        build.push(format!("args: {{ {} }}", args.collect::<Vec<_>>().join(", ")));
    }
    build.extend(case.target.iter().map(|target| format!("target: {target}")));
    let mut text = String::new();
    if !case.secrets.is_empty() {
        let names: Vec<&str> = case.secrets.iter().map(|(name, _)| name.as_str()).collect();
        build.push(format!("secrets: [{}]", names.join(", ")));
        text += "secrets:\n";
        for (name, _) in &case.secrets {
            text += &format!("  {name}: {{ file: {} }}\n", secret(dir, name).display());
        }
    }
    format!("{text}services:\n  case: {{ build: {{ {} }}, command: [sh] }}\n", build.join(", "))
}

/// Where a secret's file is.
fn secret(dir: &Path, name: &str) -> PathBuf {
    dir.with_extension(format!("secret-{name}"))
}

/// Does something with every case, several at a time: builders wait more than they work.
fn each<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, work(item)));
        }
    };
    let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(take)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, value)| value).collect()
}

/// Docker's and buildah's options are the same where both have them.
fn options(call: Call, case: &Case, dir: &Path, tag: &str) -> Call {
    let mut call = call.arg("--tag").arg(tag).arg("--file").arg(dir.join(case.dockerfile()));
    for (key, value) in &case.args {
        call = call.arg("--build-arg").arg(format!("{key}={value}"));
    }
    if let Some(target) = &case.target {
        call = call.arg("--target").arg(target);
    }
    for (name, _) in &case.secrets {
        let path = secret(dir, name);
        call = call.arg("--secret").arg(format!("id={name},src={}", path.display()));
    }
    call
}

/// What somebody other than Kiln makes of all cases.
pub(crate) fn build(peer: &str, baked: &Baked) -> Vec<Outcome> {
    match peer {
        "buildkit" => docker("1", peer, baked),
        "classic" => docker("0", peer, baked),
        "buildah" => buildah(baked),
        other => panic!("no such peer: {other}"),
    }
}

/// Builds all, then takes all images out at once, so that what they share is written once.
fn docker(buildkit: &str, peer: &str, baked: &Baked) -> Vec<Outcome> {
    let engine = Engine::start(Network::None, Keep::InMemory).unwrap();
    let config = |(key, value): (&String, &Value)| match (key.as_str(), value) {
        ("Env", Value::Array(list)) => {
            list.iter().map(|pair| format!("ENV {}", pair.as_str().unwrap())).collect()
        }
        ("Cmd", list) => vec![format!("CMD {list}")],
        other => panic!("the base has {other:?}"),
    };
    let config: Vec<String> = baked.base.config.iter().flat_map(config).collect();
    engine.import(&baked.tar, "busybox", &config).unwrap();
    let build = |(case, dir): &(Case, PathBuf)| -> Result<String, String> {
        let tag = dir.file_name().unwrap().to_str().unwrap().to_owned();
        if Case::names(&case.skip, peer) {
            return Err("not asked".to_owned());
        }
        let call = engine.docker(&["build", "--network", "none"]).env("DOCKER_BUILDKIT", buildkit);
        let output = options(call, case, dir, &tag).arg(dir).run().unwrap();
        if output.success() { Ok(tag) } else { Err(output.to_string()) }
    };
    let tags: Vec<Result<String, String>> = each(&baked.cases, build);
    if tags.iter().all(Result::is_err) {
        return outcomes(tags, &HashMap::new());
    }
    let saved = engine.path("saved.tar");
    let save = engine.docker(&["save", "--output"]).arg(&saved);
    save.args(tags.iter().flatten()).run_ok().unwrap();
    let images = Image::of_archive(&saved);
    outcomes(tags, &images)
}

fn outcomes(tags: Vec<Result<String, String>>, images: &HashMap<String, Image>) -> Vec<Outcome> {
    tags.into_iter().map(|tag| tag.map(|tag| images[&tag].clone())).collect()
}

fn buildah(baked: &Baked) -> Vec<Outcome> {
    let buildah = Buildah::start(Driver::Overlay, Keep::InMemory).unwrap();
    let config = |(key, value): (&String, &Value)| match (key.as_str(), value) {
        ("Env", Value::Array(list)) => {
            let pairs = list.iter().map(|pair| pair.as_str().unwrap().to_owned());
            pairs.flat_map(|pair| ["--env".to_owned(), pair]).collect()
        }
        ("Cmd", list) => vec!["--cmd".to_owned(), list.to_string()],
        other => panic!("the base has {other:?}"),
    };
    let config: Vec<String> = baked.base.config.iter().flat_map(config).collect();
    buildah.import(&baked.tar, "busybox", &config).unwrap();
    let build = |(case, dir): &(Case, PathBuf)| -> Outcome {
        let tag = dir.file_name().unwrap().to_str().unwrap();
        if Case::names(&case.skip, "buildah") {
            return Err("not asked".to_owned());
        }
        let call = buildah.buildah(&["build", "--pull-never", "--format", "docker"]);
        let call = call.args(["--identity-label=false", "--network", "none"]);
        let output = options(call, case, dir, tag).arg(dir).run().unwrap();
        if !output.success() {
            return Err(output.to_string());
        }
        let saved = buildah.path(&format!("{tag}.tar"));
        buildah.save(tag, &saved).unwrap();
        let image = Image::of_archive(&saved).into_values().next().unwrap();
        std::fs::remove_file(saved).unwrap();
        Ok(image)
    };
    each(&baked.cases, build)
}
