//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` gives something, first at once, then backing off from 1 to 50 ms.
///
/// # Panics
/// When `patience` is over; `what` says what was awaited.
pub fn wait_until<T>(patience: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
    match poll_until(patience, look) {
        Some(value) => value,
        None => panic!("waited {patience:?} in vain: {what}"),
    }
}

/// As [`wait_until`], with `None` when `patience` is over.
pub fn poll_until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = look() {
            return Some(value);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_at_least_once_and_returns_what_it_found() {
        assert_eq!(poll_until(Duration::ZERO, || Some(7)), Some(7));
        let mut looks = 0;
        let found = poll_until(Duration::from_secs(5), || {
            looks += 1;
            (looks == 4).then_some(looks)
        });
        assert_eq!(found, Some(4));
    }

    #[test]
    #[should_panic(expected = "in vain: a cow that flies")]
    fn names_what_did_not_come() {
        wait_until(Duration::from_millis(5), "a cow that flies", || None::<()>);
    }
}
