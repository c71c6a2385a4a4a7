//! Pieces of work that need one another's results: whatever is ready runs at once.

use std::sync::mpsc;

/// Calls `work` for every piece, once all that it needs is done; pieces are named by their place
/// in `needs`, which holds for each the places of those before it that it needs. When one fails,
/// `stop` is called, nothing new is begun, and what runs is awaited.
///
/// # Errors
/// All failures, in order of their places.
pub(crate) fn run<E: Send>(
    needs: &[Vec<usize>],
    work: impl Fn(usize) -> Result<(), E> + Sync,
    stop: impl Fn(),
) -> Result<(), Vec<(usize, E)>> {
    // A chain needs no threads.
    if needs.iter().enumerate().all(|(at, needs)| at == 0 || needs.contains(&(at - 1))) {
        return (0..needs.len()).try_for_each(|at| work(at).map_err(|error| vec![(at, error)]));
    }
    let mut open: Vec<Vec<usize>> = needs.to_vec();
    let mut waiting: Vec<usize> = (0..needs.len()).collect();
    let mut failed = Vec::new();
    let mut running = 0;
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        let work = &work;
        loop {
            let ready = |at: &usize| failed.is_empty() && open[*at].is_empty();
            for at in waiting.extract_if(.., |at| ready(at)) {
                let sender = sender.clone();
                running += 1;
                scope.spawn(move || {
                    let panicked = Panicked { at, sender: &sender, armed: true };
                    let result = work(at);
                    panicked.disarm();
                    let _ = sender.send((at, Some(result)));
                });
            }
            if running == 0 {
                break;
            }
            let Ok((done, result)) = results.recv() else { break };
            running -= 1;
            match result {
                Some(Ok(())) => open.iter_mut().for_each(|needs| needs.retain(|at| *at != done)),
                Some(Err(error)) => {
                    failed.push((done, error));
                    stop();
                }
                // The scope passes the panic on when everything has ended.
                None => {
                    waiting.clear();
                    stop();
                }
            }
        }
    });
    failed.sort_by_key(|(at, _)| *at);
    if failed.is_empty() { Ok(()) } else { Err(failed) }
}

/// Tells of a piece that panicked: nobody would wait for its result otherwise.
struct Panicked<'a, E> {
    at: usize,
    sender: &'a mpsc::Sender<(usize, Option<Result<(), E>>)>,
    armed: bool,
}

impl<E> Panicked<'_, E> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl<E> Drop for Panicked<'_, E> {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.sender.send((self.at, None));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Barrier, Mutex};

    use super::run;

    #[test]
    fn what_is_needed_comes_before() {
        let needs = [vec![], vec![], vec![0], vec![0, 1], vec![3, 2]];
        let order = Mutex::new(Vec::new());
        run(
            &needs,
            |at| {
                order.lock().unwrap().push(at);
                Ok::<_, ()>(())
            },
            || {},
        )
        .unwrap();
        let order = order.into_inner().unwrap();
        assert_eq!(order.len(), needs.len());
        for (at, needs) in needs.iter().enumerate() {
            let place = |piece: usize| order.iter().position(|done| *done == piece).unwrap();
            assert!(needs.iter().all(|needed| place(*needed) < place(at)), "{order:?}");
        }
    }

    #[test]
    fn independent_pieces_meet() {
        let both = Barrier::new(2);
        let meet = |at: usize| {
            if at < 2 {
                both.wait();
            }
            Ok::<_, ()>(())
        };
        run(&[vec![], vec![], vec![0, 1]], meet, || {}).unwrap();
    }

    #[test]
    fn a_failure_stops_the_others_and_begins_nothing() {
        let stopped = AtomicBool::new(false);
        let work = |at: usize| match at {
            0 => {
                while !stopped.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                Err("stopped")
            }
            1 => Err("failed"),
            _ => panic!("{at} was begun"),
        };
        let needs = [vec![], vec![], vec![0], vec![1]];
        let failed = run(&needs, work, || stopped.store(true, Ordering::Release)).unwrap_err();
        assert_eq!(failed, [(0, "stopped"), (1, "failed")]);
    }
}
