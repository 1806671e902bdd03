//! Histograms of the modules that measure. `telemetry` names them where it shows them.

use prometheus::{Histogram, HistogramOpts, exponential_buckets};

/// With buckets from `start` up, each as many times as wide as the one before. The arguments are
/// constants: a start above 0, a factor above 1.
pub fn exponential(start: f64, factor: f64, buckets: usize) -> Histogram {
    with_buckets(exponential_buckets(start, factor, buckets).unwrap_or_default())
}

/// With these upper bounds of its buckets, which are constants in ascending order.
pub fn with_buckets(bounds: Vec<f64>) -> Histogram {
    let opts = HistogramOpts::new("unnamed", "named where it is shown");
    match Histogram::with_opts(opts.buckets(bounds)) {
        Ok(histogram) => histogram,
        // The bounds ascend and the name is valid: constants of the caller and of this function.
        Err(error) => unreachable!("constant histogram options are invalid: {error}"),
    }
}
