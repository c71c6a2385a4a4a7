//! Many small things on two threads; few long ones, each on its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewer files than this are not worth a thread.
const WORTH: usize = 16;

/// Calls `work` for every item and returns the results in order; the first error ends it.
pub(crate) fn map<T: Sync, R: Send, E: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    map_from(WORTH, items, work)
}

/// [`map`], on two threads only from `worth` items on.
pub(crate) fn map_from<T: Sync, R: Send, E: Send>(
    worth: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    if items.len() < worth {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            match work(item) {
                Ok(result) => done.push((at, result)),
                Err(error) => {
                    next.store(items.len(), Ordering::Relaxed);
                    let mut first = failed.lock().unwrap_or_else(|poison| poison.into_inner());
                    first.get_or_insert(error);
                    return done;
                }
            }
        }
    };
    let mut results = std::thread::scope(|scope| {
        let other = scope.spawn(worker);
        let mut results = worker();
        match other.join() {
            Ok(more) => results.extend(more),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        results
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(|poison| poison.into_inner()) {
        return Err(error);
    }
    results.sort_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Calls `work` for every item at once, each on a thread of its own, and returns the results in
/// order: for few items of which each may wait. Of several failures the first in order is returned.
pub(crate) fn each<T: Sync, R: Send, E: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let Some((last, others)) = items.split_last() else { return Ok(Vec::new()) };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = others.iter().map(|item| scope.spawn(move || work(item))).collect();
        let last = work(last);
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).chain([last]).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::map;

    #[test]
    fn keeps_order_and_reports_errors() {
        let items: Vec<usize> = (0..1000).collect();
        let doubled = map(&items, |item| Ok::<_, ()>(item * 2)).unwrap();
        assert!(doubled.iter().enumerate().all(|(at, value)| at * 2 == *value));
        assert_eq!(map(&items, |item| if *item == 500 { Err(*item) } else { Ok(()) }), Err(500));
    }
}
