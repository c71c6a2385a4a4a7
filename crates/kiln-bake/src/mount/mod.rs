//! What a RUN has mounted, as a plain value that can be mounted again and again, and the mounting.
//!
//! | module | noun |
//! |---|---|
//! | [`caches`] | directories that persist between builds |
//! | [`agent`] | the socket of an SSH agent, forwarded |
//! | [`secret`] | secrets: read, and kept out of what a step writes |
//!
//! A mount's content is an input of the step only if it is a bind: caches, secrets and agents are
//! no part of a key, so nothing that a step makes of them may matter for the image. `kiln verify`
//! runs each step with [`Caches::Empty`].

pub mod agent;
pub mod caches;
pub mod secret;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_core::compose::Tmpfs;
use kiln_core::tree::Tree;
use kiln_core::{Digest, tree};
use kiln_store::{Lower, Store};

use self::caches::Cache;
use self::secret::SecretMount;
use crate::edit;
use crate::error::BakeError;
use crate::key::Key;
use crate::runner::{Around, ImageMount, SecretFile, StepMount};

/// One mount of a step.
#[derive(Debug, Clone)]
pub enum Mount {
    /// Files of the context, a stage or a base.
    Bind {
        /// What shows.
        content: Content,
        /// Absolute.
        target: String,
        /// Else what is written is thrown away.
        read_only: bool,
    },
    /// A directory that persists.
    Cache(Cache),
    /// An empty directory in memory.
    Tmpfs(Tmpfs),
    /// A secret.
    Secret(SecretMount),
    /// An agent's socket.
    Ssh(agent::AgentMount),
}

/// What a bind shows.
#[derive(Debug, Clone)]
pub enum Content {
    /// All of a tree of the store.
    Tree(Digest),
    /// A file or directory; what it holds goes into the store when it is mounted.
    Entries(Arc<edit::Source>),
}

/// Where the caches of a step are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caches {
    /// Below this directory, for the next step too.
    Kept(PathBuf),
    /// Nowhere: each is empty, and gone when the step has ended.
    Empty,
}

/// Mounts that are ready, and what has to live as long as the step runs.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) mounts: Vec<StepMount>,
    pub(crate) around: Around,
    /// Further variables.
    pub(crate) env: Vec<String>,
    /// What must not be shown.
    pub(crate) hidden: Vec<Vec<u8>>,
    /// What users should know.
    pub(crate) notices: Vec<String>,
    _caches: Vec<caches::InUse>,
    _agents: Vec<agent::Forwarded>,
}

/// What is at hand for the mounting.
pub(crate) struct Hand<'a> {
    pub(crate) store: &'a Store,
    /// A directory of the step's own, gone after it.
    pub(crate) scratch: &'a Path,
    pub(crate) caches: &'a Caches,
    /// Whether the step is not wanted any more.
    pub(crate) given_up: &'a dyn Fn() -> bool,
}

impl Mount {
    /// Adds all that decides the outcome of a step that has it.
    pub(crate) fn key(&self, key: Key) -> Key {
        match self {
            Self::Bind { content, target, read_only } => {
                let key = key.text("bind").text(target).number(u64::from(*read_only));
                content.key(key)
            }
            Self::Cache(cache) => cache.key(key),
            Self::Tmpfs(tmpfs) => {
                key.text("tmpfs").text(&tmpfs.target).number(tmpfs.size.unwrap_or(0))
            }
            Self::Secret(secret) => secret.key(key),
            Self::Ssh(agent) => agent.key(key),
        }
    }
}

impl Content {
    pub(crate) fn key(&self, key: Key) -> Key {
        match self {
            Self::Tree(digest) => key.number(0).digest(digest),
            Self::Entries(source) => {
                key.number(1).entries(source.entries.iter().map(|(path, node)| (path, node)))
            }
        }
    }

    /// The tree in the store, the path in it, and whether that is a directory.
    pub(crate) fn put(&self, store: &Store) -> Result<(Digest, PathBuf, bool), BakeError> {
        let source = match self {
            Self::Tree(digest) => return Ok((*digest, PathBuf::new(), true)),
            Self::Entries(source) => source,
        };
        source.put(store).map_err(|error| match error {
            edit::EditError::User(what) => BakeError::Failed(what),
            edit::EditError::Failed(error) => error,
        })?;
        let dir = source.entries.first().is_some_and(|(_, node)| node.is_dir());
        let mut tree = Tree::new();
        if dir {
            tree.entries.extend(source.entries.iter().cloned());
        } else if let Some((_, node)) = source.entries.first() {
            tree.insert(b"file", node.clone());
        }
        let digest = store.keep_tree(Arc::new(tree)).map_err(BakeError::store)?;
        Ok((digest, if dir { PathBuf::new() } else { "file".into() }, dir))
    }

    fn lower(&self, store: &Store) -> Result<(Lower, PathBuf, bool), BakeError> {
        let (digest, path, dir) = self.put(store)?;
        Ok((store.lower(&digest).map_err(BakeError::store)?, path, dir))
    }
}

/// Makes everything ready. Caches are locked in one order for all steps, so that no two wait for
/// each other.
pub(crate) fn ready(mounts: &[Mount], hand: &Hand<'_>) -> Result<Ready, BakeError> {
    let mut ready = Ready::default();
    let mut caches: Vec<&Cache> = Vec::new();
    for (number, mount) in mounts.iter().enumerate() {
        let scratch = || {
            let dir = hand.scratch.join(format!("mount-{number}"));
            std::fs::create_dir(&dir)
                .map_err(|error| BakeError::io("cannot make", &dir, error))
                .map(|()| dir)
        };
        match mount {
            Mount::Bind { content, target, read_only } => {
                let (lower, path, dir) = content.lower(hand.store)?;
                let upper_dir = if *read_only { None } else { Some(scratch()?) };
                let (target, read_only) = (target.clone(), *read_only);
                let image = ImageMount { lower, upper_dir, path, dir, target, read_only };
                ready.around.images.push(image);
            }
            Mount::Cache(cache) => caches.push(cache),
            Mount::Tmpfs(tmpfs) => ready.around.tmpfs.push(tmpfs.clone()),
            Mount::Secret(secret) => take_secret(secret, &mut ready)?,
            Mount::Ssh(agent) => {
                if let Some(forwarded) = agent.forward(&scratch()?)? {
                    ready.mounts.push(forwarded.mount(&agent.target));
                    if !ready.env.iter().any(|pair| pair.starts_with("SSH_AUTH_SOCK=")) {
                        ready.env.push(format!("SSH_AUTH_SOCK={}", agent.target));
                    }
                    ready._agents.push(forwarded);
                }
            }
        }
    }
    // All steps take them in one order. Of several mounts of one cache the strictest takes it.
    caches.sort_by_key(|cache| (cache.name(), Reverse(cache.sharing)));
    let mut last = None;
    for cache in caches {
        let name = cache.name();
        let in_use = match (last, ready._caches.last()) {
            (Some(last), Some(taken)) if last == name => taken.again(cache)?,
            _ => cache.take(hand)?,
        };
        let in_use = in_use.descend(&cache.source)?;
        in_use.mount(cache, hand, &mut ready)?;
        ready._caches.push(in_use);
        last = Some(name);
    }
    Ok(ready)
}

fn take_secret(secret: &SecretMount, ready: &mut Ready) -> Result<(), BakeError> {
    let Some(content) = secret.read()? else {
        ready.notices.push(format!(
            "it asks for the secret `{0}`, which the build does not have: name it under \
             `build.secrets`, or write `required=true` to have the step fail without it",
            secret.id
        ));
        return Ok(());
    };
    if let Some(name) = &secret.env {
        let text = String::from_utf8(content.clone()).map_err(|_| {
            BakeError::usage(
                format!("the secret `{}` is not UTF-8 text", secret.id),
                "mount it as a file",
            )
        })?;
        ready.env.push(format!("{name}={text}"));
    }
    secret::worth_hiding(&content, &mut ready.hidden);
    if let Some(target) = &secret.target {
        let (uid, gid, mode) = (secret.uid, secret.gid, secret.mode);
        let target = target.clone();
        ready.around.secrets.push(SecretFile { content, target, uid, gid, mode });
    }
    Ok(())
}

/// What a bind of all of an empty image shows.
pub(crate) fn nothing() -> Content {
    let root = tree::Node::new(tree::Kind::Dir, 0o755);
    Content::Entries(Arc::new(edit::Source {
        name: Vec::new(),
        entries: vec![(Vec::new(), root)],
        origin: edit::Origin::Store,
        unpacked: None,
        implied: BTreeSet::new(),
    }))
}
