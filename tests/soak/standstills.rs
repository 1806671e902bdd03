//! Providers that are stopped for seconds and minutes, with all spools, alone and as five sidecars: half
//! an hour, `make soak`. A part of it is in `tests/load/standstill.rs`.

use std::time::Duration;

use crate::support::standstill::{Spool, one_of_four, stopped};

/// `TOLLGATE_STOPS=2,5` tries only these, in seconds.
#[tokio::test]
async fn every_length_and_spool() {
    let lengths = std::env::var("TOLLGATE_STOPS").unwrap_or("2,5,20,120".to_owned());
    for seconds in lengths.split(',').map(|length| length.parse().unwrap()) {
        for spool in [Spool::None, Spool::Disk, Spool::Redis] {
            for sidecars in [1, 5] {
                let used = stopped(spool, sidecars, Duration::from_secs(seconds)).await;
                assert!(used >= 0.95, "{used} used: {spool:?}, {sidecars}, {seconds} s");
            }
        }
    }
}

#[tokio::test]
async fn one_of_four_backends() {
    for seconds in [2, 5, 8] {
        let used = one_of_four(Duration::from_secs(seconds)).await;
        assert!(used >= 0.95, "{used} used: {seconds} s");
    }
}
