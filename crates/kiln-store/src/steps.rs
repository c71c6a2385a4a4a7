//! Results of bake steps, by the key of the step: `cache/steps/<64 hex>`, holding the image's two
//! digests. A cache: what is gone or unreadable is baked again.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use kiln_core::{Digest, ImageId};

use crate::durable::write_atomic;
use crate::error::{Context as _, Result};
use crate::store::Store;

/// How long a wait for a turn may go on after it was given up.
const LOOK: Duration = Duration::from_millis(50);

/// Keys that somebody in this process works on.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<HashSet<Digest>>,
    given_back: Condvar,
}

/// The only one in this process that works on a key, while it lives.
#[derive(Debug)]
pub struct StepTurn<'a> {
    turns: &'a Turns,
    key: Digest,
}

impl Drop for StepTurn<'_> {
    fn drop(&mut self) {
        let mut taken = self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&self.key);
        self.turns.given_back.notify_all();
    }
}

impl Store {
    /// Waits until nobody else in this process works on the step of this key: two services that
    /// share a step do its work once, for the second one then finds the result. `None` when
    /// `given_up` says so.
    pub fn step_turn(&self, key: &Digest, given_up: &dyn Fn() -> bool) -> Option<StepTurn<'_>> {
        let turns = &self.inner.turns;
        let mut taken = turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while !taken.insert(*key) {
            if given_up() {
                return None;
            }
            let waited = turns.given_back.wait_timeout(taken, LOOK);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(StepTurn { turns, key: *key })
    }

    /// The image that the step of this key made, if it is known, still there, and by all that can
    /// be told without reading what nobody has touched, whole: else the step is done again.
    pub fn step_result(&self, key: &Digest) -> Option<ImageId> {
        let image: ImageId = serde_json::from_slice(&fs::read(self.step_path(key)).ok()?).ok()?;
        let whole = |digest| self.seems_whole(digest).unwrap_or(false);
        (whole(&image.tree) && whole(&image.config)).then_some(image)
    }

    /// Records what the step of this key made.
    ///
    /// # Errors
    /// I/O errors.
    pub fn set_step_result(&self, key: &Digest, image: &ImageId) -> Result<()> {
        let path = self.step_path(key);
        let bytes = serde_json::to_vec(image).unwrap_or_default();
        // Not marked: what it names marked the root when it was put, and a torn result is none.
        write_atomic(&path, &bytes).doing("writing", &path)
    }

    fn step_path(&self, key: &Digest) -> PathBuf {
        self.inner.root.join("cache/steps").join(key.hex())
    }
}
