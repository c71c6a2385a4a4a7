//! All package files of a base, decoded by as many threads as there are processors, up to four.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_store::Store;

use super::assemble::Unpacked;
use super::deb;
use super::error::BaseError;
use super::lock::LockedBase;
use super::progress::{Phase, Watch};

/// Decodes the packages of `base`, in unpack order.
pub(crate) fn unpack(
    store: &Store,
    name: &str,
    base: &LockedBase,
    watch: Watch<'_>,
) -> Result<Vec<Unpacked>, BaseError> {
    let total = base.unpack.len();
    // The largest first, so that no thread is left alone with it at the end.
    let mut order: Vec<usize> = (0..total).collect();
    order.sort_by_key(|at| std::cmp::Reverse(base.unpack[*at].size));
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Unpacked>>> = Mutex::new((0..total).map(|_| None).collect());
    let work = || -> Result<(), BaseError> {
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let package = &base.unpack[*at];
            let tree = deb::decoded(store, package)?;
            let unpacked = Unpacked::new(store, package.clone(), tree)?;
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done[*at] = Some(unpacked);
            let count = done.iter().flatten().count() as u64;
            drop(done);
            watch.step(name, Phase::Unpack, (count, total as u64), &package.name)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.min(total)).map(|_| scope.spawn(work)).collect();
        // All are awaited before the first error is passed on.
        let results: Vec<_> = running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect::<Result<Vec<()>, _>>()
    })?;
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(done.into_iter().flatten().collect())
}
