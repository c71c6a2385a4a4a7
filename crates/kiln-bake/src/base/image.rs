//! A locked base → an image.

use std::sync::Arc;

use kiln_core::tree::Kind;
use kiln_core::{Digest, ImageConfig, ImageId, Tree};
use kiln_store::Store;

use super::configure::configure;
use super::error::BaseError;
use super::fetch::fetch;
use super::lock::LockedBase;
use super::minimal::minimal;
use super::progress::Watch;
use super::sources::{AskHost, HostApt};
use crate::runner::StepRunner;

/// Version of the recipe. It goes into the key under which a base is kept: raise it whenever the
/// same lock would give another tree.
pub const RECIPE: u32 = 2;

/// `PATH` of a base, as Docker's images of Debian have it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bakes a locked base, or finds it baked. The same lock gives the same digests on any machine.
/// `name` is for messages only. Nothing that is in the store is asked of a mirror.
///
/// # Errors
/// [`BaseError`] names the package or script; nothing is recorded then.
pub fn bake_base(
    store: &Store,
    name: &str,
    base: &LockedBase,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<ImageId, BaseError> {
    bake_from(store, name, base, runner, watch, &HostApt::read)
}

/// [`bake_base`] with the host's apt given.
pub(crate) fn bake_from(
    store: &Store,
    name: &str,
    base: &LockedBase,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
    host: AskHost<'_>,
) -> Result<ImageId, BaseError> {
    let key = key(base);
    if let Some(image) = store.step_result(&key) {
        return Ok(image);
    }
    let _lease = store.lease()?;
    fetch(store, name, base, None, host, watch)?;
    let image = bake_unpinned(store, name, base, runner, watch)?;
    store.set_step_result(&key, &image)?;
    Ok(image)
}

/// [`bake_base`] without its cache, for `kiln verify`.
///
/// # Errors
/// As [`bake_base`].
pub fn rebake_base(
    store: &Store,
    name: &str,
    base: &LockedBase,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<ImageId, BaseError> {
    let _lease = store.lease()?;
    fetch(store, name, base, None, &HostApt::read, watch)?;
    bake_unpinned(store, name, base, runner, watch)
}

/// The key under which the image of `base` is kept.
pub fn key(base: &LockedBase) -> Digest {
    Digest::of(format!("kiln base {RECIPE}\n{}\n", base.digest()))
}

fn bake_unpinned(
    store: &Store,
    name: &str,
    base: &LockedBase,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<ImageId, BaseError> {
    let tree = if base.minimal {
        minimal(store, name, base, runner, watch)?
    } else {
        configure(store, name, base, runner, watch)?.tree
    };
    let config = store.put_config(&config(&tree))?;
    Ok(ImageId { tree: store.keep_tree(Arc::new(tree))?, config })
}

fn config(tree: &Tree) -> ImageConfig {
    let bash = matches!(tree.get(b"usr/bin/bash").map(|node| &node.kind), Some(Kind::File { .. }));
    let shell = if bash { "bash" } else { "/bin/sh" };
    ImageConfig {
        env: vec![PATH.to_owned()],
        cmd: Some(vec![shell.to_owned()]),
        ..ImageConfig::default()
    }
}
