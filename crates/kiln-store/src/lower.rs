//! Tree → recipe for a mount. What a recipe names is derived and can be built again at any time:
//! `images/<tree>.erofs`, or `links/trees/<tree>/` where the kernel is too old for images.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use kiln_core::tree::{Kind, Node, Tree};
use kiln_core::{Digest, digest::Hasher};
use serde::{Deserialize, Serialize};

use crate::durable::write_atomic;
use crate::erofs;
use crate::error::{Context as _, Error, Result};
use crate::links::{self, Files};
use crate::objects::object_path;
use crate::store::Store;

/// How to mount an image; valid in every process that sees the root at the same path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lower {
    /// An EROFS image of the metadata over the objects.
    Composefs {
        /// The image file.
        image: PathBuf,
        /// The folder of the objects.
        objects: PathBuf,
    },
    /// A folder whose files are hard links.
    Links {
        /// The folder.
        dir: PathBuf,
    },
}

/// How this root mounts images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// EROFS images over the objects (Linux 6.12).
    Composefs,
    /// Folders of hard links.
    Links,
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Composefs => "composefs",
            Self::Links => "links",
        })
    }
}

/// The backing and why it was chosen.
#[derive(Debug)]
pub(crate) struct Choice {
    backing: Backing,
    why: String,
}

/// What `backing` in the root holds: the probe's result, good for one kernel.
#[derive(Debug, Serialize, Deserialize)]
struct Probed {
    kernel: String,
    backing: Backing,
    why: String,
}

impl Choice {
    pub(crate) fn make(root: &Path, given: Option<Backing>) -> Result<Self> {
        let variable = std::env::var("KILN_STORE_BACKING").ok();
        let forced = match (given, variable.as_deref()) {
            (Some(backing), _) => Some(backing),
            (None, None | Some("")) => None,
            (None, Some("composefs")) => Some(Backing::Composefs),
            (None, Some("links")) => Some(Backing::Links),
            (None, Some(other)) => {
                let why = "it can be `composefs` or `links`".to_owned();
                return Err(Error::Backing { value: other.to_owned(), why });
            }
        };
        match forced {
            Some(Backing::Links) => {
                Ok(Self { backing: Backing::Links, why: "it was asked for".to_owned() })
            }
            Some(Backing::Composefs) => match probe(root) {
                Ok(()) => {
                    Ok(Self { backing: Backing::Composefs, why: "it was asked for".to_owned() })
                }
                Err(error) => {
                    let why = format!("this kernel cannot: {error}");
                    Err(Error::Backing { value: "composefs".to_owned(), why })
                }
            },
            None => Self::probed(root),
        }
    }

    /// Takes the earlier probe's word while the kernel is the same, else tries.
    fn probed(root: &Path) -> Result<Self> {
        let path = root.join("backing");
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let known = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(Probed { backing, why, .. }) =
            known.filter(|known: &Probed| known.kernel == kernel)
        {
            return Ok(Self { backing, why });
        }
        let (backing, why) = match probe(root) {
            Ok(()) => (Backing::Composefs, format!("Linux {kernel} mounts EROFS over objects")),
            Err(error) => (Backing::Links, format!("Linux {kernel} cannot mount EROFS: {error}")),
        };
        // Without the right to mount nothing was learnt about the kernel.
        if rustix::process::geteuid().is_root() {
            let probed = Probed { kernel, backing, why: why.clone() };
            let text = serde_json::to_vec(&probed).unwrap_or_default();
            write_atomic(&path, &text).doing("writing", &path)?;
        }
        Ok(Self { backing, why })
    }
}

/// Really mounts a tiny image and reads a file through it.
fn probe(root: &Path) -> io::Result<()> {
    let dir = root.join("tmp").join(crate::owner::unique("probe"));
    fs::create_dir(&dir)?;
    let result = (|| {
        let content = b"kiln";
        let mut hasher = Hasher::new();
        hasher.update(content);
        let digest = hasher.finish();
        let mut tree = Tree::new();
        let kind = Kind::File { size: content.len() as u64, digest };
        tree.insert(b"probe", Node::new(kind, 0o644));
        let object = object_path(&dir, &digest);
        fs::create_dir_all(object.parent().unwrap_or(&dir))?;
        fs::write(&object, content)?;
        let image = dir.join("probe.erofs");
        fs::write(&image, erofs::build(&tree, &digest).map_err(io::Error::other)?)?;
        let lower = Lower::Composefs { image, objects: dir.join("objects") };
        let mount = crate::mount::mount_image(&lower, None)?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::openat(&mount, "probe", flags, rustix::fs::Mode::empty())?;
        let mut read = Vec::new();
        File::from(file).read_to_end(&mut read)?;
        if read == content { Ok(()) } else { Err(io::Error::other("it reads something else")) }
    })();
    let removed = fs::remove_dir_all(&dir);
    result.and(removed)
}

impl Store {
    /// How this store mounts images.
    pub fn backing(&self) -> Backing {
        self.inner.choice.backing
    }

    /// Why it does so, for people.
    pub fn backing_reason(&self) -> &str {
        &self.inner.choice.why
    }

    /// The recipe for mounting the tree, whose derived form is built if it is not there yet.
    ///
    /// # Errors
    /// [`Error::Missing`] if the tree (or, with links, a content) is not in the store;
    /// [`Error::Tree`] for a tree that cannot be shown; I/O errors.
    pub fn lower(&self, tree: &Digest) -> Result<Lower> {
        self.lower_by(self.backing(), tree)
    }

    /// The same for a step of a bake, which may write down what it sees: with links, every file is a
    /// copy, so that its number of links is the tree's own. It takes the time and the room of a copy.
    ///
    /// # Errors
    /// As [`Store::lower`].
    pub fn step_lower(&self, tree: &Digest) -> Result<StepLower> {
        match self.backing() {
            Backing::Composefs => Ok(StepLower { lower: self.lower(tree)?, _copies: None }),
            Backing::Links => self.copied(tree),
        }
    }

    /// The tree of a step in the backing that this store does not use; `None` if this kernel cannot
    /// do that one. What a program sees of both is equal but for the order of a folder's names.
    ///
    /// # Errors
    /// As [`Store::lower`].
    pub fn other_lower(&self, lower: &Lower) -> Result<Option<StepLower>> {
        let (path, other) = match lower {
            Lower::Composefs { image, .. } => (image, Backing::Links),
            Lower::Links { dir } => (dir, Backing::Composefs),
        };
        let Some(tree) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()) else {
            return Ok(None);
        };
        match other {
            Backing::Links => self.copied(&tree).map(Some),
            Backing::Composefs if probe(self.root()).is_err() => Ok(None),
            Backing::Composefs => {
                let lower = self.lower_by(other, &tree)?;
                Ok(Some(StepLower { lower, _copies: None }))
            }
        }
    }

    /// Lays the files of a tree out in a new folder, which appears whole or not at all: copies of
    /// contents that are not looked at.
    ///
    /// # Errors
    /// As [`Store::lower`].
    pub fn checkout(&self, tree: &Digest, dir: &Path) -> Result<()> {
        links::build(self, &*self.get_tree(tree)?, tree, Files::Copies, dir)
    }

    fn copied(&self, tree: &Digest) -> Result<StepLower> {
        let scratch = self.scratch_dir()?;
        let (trees, empty) = (scratch.path().join("trees"), scratch.path().join("empty"));
        for dir in [&trees, &empty] {
            fs::create_dir(dir).doing("creating", dir)?;
        }
        let dir = trees.join(tree.hex());
        links::build(self, &*self.get_tree(tree)?, tree, Files::Copies, &dir)?;
        Ok(StepLower { lower: Lower::Links { dir }, _copies: Some(scratch) })
    }

    fn lower_by(&self, backing: Backing, tree: &Digest) -> Result<Lower> {
        // One at a time: a second caller for the same tree waits instead of building it again.
        let mut done = self.inner.lowers.lock().unwrap_or_else(PoisonError::into_inner);
        let root = &self.inner.root;
        match backing {
            Backing::Composefs => {
                let image = root.join("images").join(format!("{}.erofs", tree.hex()));
                let there = match done.contains(tree) {
                    true => image.exists(),
                    false => self.image_is_whole(&image),
                };
                if !there {
                    self.write_image(&image, &erofs::build(&*self.get_tree(tree)?, tree)?)?;
                }
                done.insert(*tree);
                Ok(Lower::Composefs { image, objects: root.join("objects") })
            }
            Backing::Links => {
                let dir = root.join("links/trees").join(tree.hex());
                if !dir.exists() {
                    let listed = self.get_tree(tree)?;
                    links::build(self, &listed, tree, Files::Links, &dir)?;
                }
                Ok(Lower::Links { dir })
            }
        }
    }
}

/// What a step runs on, for as long as this is kept.
#[derive(Debug)]
pub struct StepLower {
    lower: Lower,
    _copies: Option<tempfile::TempDir>,
}

impl std::ops::Deref for StepLower {
    type Target = Lower;

    fn deref(&self) -> &Lower {
        &self.lower
    }
}
