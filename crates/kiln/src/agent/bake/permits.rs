//! How many steps may run at once, over all services of all bakes: as many as the machine has
//! cores. What steps themselves start in parallel is their own affair.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a wait may go on after it was given up.
const LOOK: Duration = Duration::from_millis(50);

/// Permits to run a step.
#[derive(Debug)]
pub(crate) struct Permits {
    free: Mutex<usize>,
    given_back: Condvar,
}

/// Lets one step run; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a Permits);

impl Permits {
    /// One for each core, and never fewer than two: a step that waits must not hold up all others.
    pub(crate) fn of_machine() -> Self {
        Self::new(std::thread::available_parallelism().map_or(2, usize::from).max(2))
    }

    fn new(free: usize) -> Self {
        Self { free: Mutex::new(free), given_back: Condvar::new() }
    }

    /// Waits for a permit; `None` when `given_up` says so.
    pub(crate) fn take(&self, given_up: &dyn Fn() -> bool) -> Option<Permit<'_>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            if given_up() {
                return None;
            }
            let waited = self.given_back.wait_timeout(free, LOOK);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Some(Permit(self))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::Permits;

    #[test]
    fn no_more_than_there_are() {
        let permits = Permits::new(2);
        let one = permits.take(&|| false).unwrap();
        let two = permits.take(&|| true).unwrap();
        assert!(permits.take(&|| true).is_none());
        drop(one);
        let three = permits.take(&|| true).unwrap();
        assert!(permits.take(&|| true).is_none());
        drop((two, three));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| permits.take(&|| false).unwrap());
            }
        });
        assert!(permits.take(&|| true).is_some());
    }
}
