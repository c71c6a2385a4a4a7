//! The Compose reader through its public door, over files in memory.

mod errors;
mod keys;
mod loading;
mod merging;
mod networks;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use kiln_core::compose::{
    ComposeError, ComposeErrors, LoadRequest, Project, Service, configuration, load,
};

/// Files of a machine whose project is `/w/shop`, and an environment.
#[derive(Default)]
struct World {
    files: BTreeMap<PathBuf, String>,
    env: BTreeMap<String, String>,
    named: Vec<PathBuf>,
    profiles: Vec<String>,
    /// Services that the command names.
    asked: Vec<String>,
    project_name: Option<String>,
    project_dir: Option<PathBuf>,
    env_files: Vec<PathBuf>,
    /// Folders that are reached over a link, and where they really are.
    links: BTreeMap<PathBuf, PathBuf>,
}

impl World {
    fn new(compose: &str) -> Self {
        Self::default().file("compose.yaml", compose)
    }

    /// Adds a file; relative names are below `/w/shop`.
    fn file(mut self, name: &str, text: &str) -> Self {
        self.files.insert(Path::new("/w/shop").join(name), text.to_owned());
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    fn named(mut self, names: &[&str]) -> Self {
        self.named = names.iter().map(|name| Path::new("/w/shop").join(name)).collect();
        self
    }

    fn profile(mut self, name: &str) -> Self {
        self.profiles.push(name.into());
        self
    }

    fn load(&self) -> Result<Project, ComposeError> {
        self.load_in("/w/shop")
    }

    fn load_in(&self, dir: &str) -> Result<Project, ComposeError> {
        self.load_all(dir).map_err(|errors| errors.all()[0].clone())
    }

    fn load_all(&self, dir: &str) -> Result<Project, ComposeErrors> {
        self.ask(dir, load)
    }

    /// What `kiln config` would refuse.
    fn configuration(&self) -> Result<(), ComposeError> {
        let shown = self.ask("/w/shop", |request| configuration(request, &[]));
        shown.map(drop).map_err(|errors| errors.all()[0].clone())
    }

    fn ask<T>(&self, dir: &str, what: impl FnOnce(&LoadRequest<'_>) -> T) -> T {
        let read = |path: &Path| -> io::Result<Vec<u8>> {
            match self.files.get(path) {
                Some(text) => Ok(text.clone().into_bytes()),
                None => Err(io::Error::from(io::ErrorKind::NotFound)),
            }
        };
        what(&LoadRequest {
            files: self.named.clone(),
            dir: dir.into(),
            project_dir: self.project_dir.clone(),
            env_files: self.env_files.clone(),
            env: self.env.clone(),
            profiles: self.profiles.clone(),
            named: self.asked.clone(),
            project_name: self.project_name.clone(),
            read: &read,
            real_dir: &|dir| self.links.get(dir).cloned().unwrap_or_else(|| dir.to_owned()),
        })
    }
}

const BASES: &str = "x-kiln: {bases: {base: {debian: bookworm, packages: [busybox]}}}\n";

/// A project with the one service `web`, whose keys are `yaml` (indented by the caller or flow).
fn compose_of(yaml: &str) -> String {
    let indented: String = yaml.lines().map(|line| format!("    {line}\n")).collect();
    let mut text = format!("services:\n  web:\n{indented}");
    if !yaml.contains("image:") && !yaml.contains("build:") {
        text.push_str("    image: base\n");
    }
    text.push_str("volumes: {data: , more: }\n");
    text.push_str("configs: {conf: {file: ./c.conf}, text: {content: hello}}\n");
    text.push_str("secrets: {key: {file: ./key}}\n");
    text + BASES
}

fn web(yaml: &str) -> Service {
    match World::new(&compose_of(yaml)).env("FROM_ENV", "e").env("HOME", "/home/u").load() {
        Ok(mut project) => project.services.remove("web").unwrap(),
        Err(error) => panic!("{yaml}: {error}"),
    }
}
