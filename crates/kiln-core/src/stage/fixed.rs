//! What everybody may read and only moves change.

use std::ops::Deref;

/// A part of a stage that only its moves change.
#[derive(Debug)]
pub struct Fixed<T>(pub(super) T);

impl<T> Fixed<T> {
    pub(super) fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Fixed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
