//! Runs on a paused clock, and what the provider saw in them.

use std::ops::Add;
use std::time::Duration;

/// A paused clock and one thread: a run depends on nothing but its input.
pub(crate) fn virtual_time<F: Future>(run: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(run))
}

/// The most arrivals in any half-open second.
pub(crate) fn worst_second<T: Copy + Ord + Add<Duration, Output = T>>(arrivals: &[T]) -> usize {
    let mut arrivals = arrivals.to_vec();
    arrivals.sort();
    let (mut first, mut worst) = (0, 0);
    for (i, at) in arrivals.iter().enumerate() {
        while *at >= arrivals[first] + Duration::from_secs(1) {
            first += 1;
        }
        worst = worst.max(i + 1 - first);
    }
    worst
}
