//! A directory with a `compose.yaml` and its files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A project on disk. Its files go with the directory that it was made in.
#[derive(Debug, Clone)]
pub struct Project {
    dir: PathBuf,
}

impl Project {
    /// Makes the directory if it is not there, and writes `compose.yaml`.
    ///
    /// # Panics
    /// If the disk does not take it.
    pub fn new(dir: impl Into<PathBuf>, compose: &str) -> Self {
        let project = Self { dir: dir.into() };
        project.write("compose.yaml", compose);
        project
    }

    /// Copies a directory of the repository, without any `kiln.lock`.
    ///
    /// # Panics
    /// If the disk does not give or take it.
    pub fn copy_of(source: &Path, dir: impl Into<PathBuf>) -> Self {
        let project = Self { dir: dir.into() };
        copy(source, &project.dir);
        project
    }

    /// The project's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The absolute path of one of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file with mode 0644, and the directories that lead to it.
    ///
    /// # Panics
    /// If the disk does not take it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        self.write_mode(name, content, 0o644)
    }

    /// Writes a program: a file with mode 0755.
    ///
    /// # Panics
    /// If the disk does not take it.
    pub fn write_program(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        self.write_mode(name, content, 0o755)
    }

    /// Reads a file.
    ///
    /// # Panics
    /// If it cannot be read as text.
    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Replaces a text, which has to be there, in a file, which keeps its mode.
    ///
    /// # Panics
    /// If it is not there, or the disk fails.
    pub fn edit(&self, name: &str, from: &str, to: &str) -> &Self {
        let content = self.read(name);
        assert!(content.contains(from), "{name} does not contain {from:?}:\n{content}");
        let path = self.path(name);
        fs::write(&path, content.replace(from, to))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self
    }

    fn write_mode(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> &Self {
        let path = self.path(name);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, content))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self
    }
}

fn copy(source: &Path, target: &Path) {
    let fail = |error| panic!("copying {} to {}: {error}", source.display(), target.display());
    if source.is_dir() {
        fs::create_dir_all(target).unwrap_or_else(fail);
        for entry in fs::read_dir(source).unwrap_or_else(|error| panic!("{error}")) {
            let name = entry.unwrap_or_else(|error| panic!("{error}")).file_name();
            if name != "kiln.lock" {
                copy(&source.join(&name), &target.join(&name));
            }
        }
    } else {
        fs::copy(source, target).map(drop).unwrap_or_else(fail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_edits_and_copies() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project::new(dir.path().join("a"), "services: {}\n");
        project.write("web/index.html", "one").edit("web/index.html", "one", "two");
        project.write_program("web/run", "#!/bin/sh\n").write("kiln.lock", "old");
        project.edit("web/run", "/bin/sh", "/bin/ash");
        let copy = Project::copy_of(project.dir(), dir.path().join("b"));
        assert_eq!(copy.read("web/index.html"), "two");
        assert!(!copy.path("kiln.lock").exists());
        let mode = fs::metadata(copy.path("web/run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
