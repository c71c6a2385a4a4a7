//! How long a start takes, printed; the bound is loose, for machines differ and tests run beside.

use std::time::{Duration, Instant};

use crate::kit::Kit;

#[test]
fn a_start_is_quick() {
    let kit = Kit::new();
    let mut times: Vec<Duration> = (0..30)
        .map(|_| {
            let spec = kit.spec("exec sleep 100");
            let begun = Instant::now();
            let running = kit.runtime.start(&spec).unwrap();
            let time = begun.elapsed();
            running.kill();
            time
        })
        .collect();
    times.sort();
    eprintln!(
        "request to exec: median {:?}, least {:?}, most {:?}",
        times[15], times[0], times[29]
    );
    assert!(times[15] < Duration::from_millis(500), "{times:?}");
    kit.assert_clean();
}
