//! Results of bake steps, by the key of the step: `cache/steps/<64 hex>`, holding the image's two
//! digests. A cache: what is gone or unreadable is baked again.

use std::fs;
use std::path::PathBuf;

use kiln_core::{Digest, ImageId};

use crate::durable::write_atomic;
use crate::error::{Context as _, Result};
use crate::store::Store;

impl Store {
    /// The image that the step of this key made, if it is known and still there.
    pub fn step_result(&self, key: &Digest) -> Option<ImageId> {
        let image: ImageId = serde_json::from_slice(&fs::read(self.step_path(key)).ok()?).ok()?;
        (self.contains(&image.tree) && self.contains(&image.config)).then_some(image)
    }

    /// Records what the step of this key made.
    ///
    /// # Errors
    /// I/O errors.
    pub fn set_step_result(&self, key: &Digest, image: &ImageId) -> Result<()> {
        let path = self.step_path(key);
        let bytes = serde_json::to_vec(image).unwrap_or_default();
        // After a power cut a result may outlive objects that it names, so it marks the root too.
        let _unsynced = self.inner.unsynced.mark()?;
        write_atomic(&path, &bytes).doing("writing", &path)
    }

    fn step_path(&self, key: &Digest) -> PathBuf {
        self.inner.root.join("cache/steps").join(key.hex())
    }
}
