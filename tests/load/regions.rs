//! The provider counts an account's calls by region: sidecars that know their region share its ceiling, and
//! with one that does not, as of an older version, all share one. Never over, also while that changes.
//! `src/ceiling/tests/fleets.rs` has what takes longer.

use crate::support::fleet::{Fleet, N, mean, redis};
use crate::support::http::get;
use crate::support::process::Emulator;
use crate::support::redis::{Redis, keys};
use crate::support::{beside_others, until};
use rustix::process::Signal;
use tokio::time::Instant;

const HANGZHOU: &str = "cn-hangzhou";
const SINGAPORE: &str = "ap-southeast-1";

#[tokio::test]
async fn a_rolling_update_is_never_over() {
    let _one = beside_others().await;
    let redis = redis();
    let old = vec![("fleet.url", redis.url())];
    let new = [old.clone(), vec![("fleet.region", HANGZHOU.to_owned())]].concat();
    let fleet = Fleet::start_with(&["--egress-ip-qps", "0"], &[old.clone(), old, new]).await;
    let middle = async {
        fleet.at(5).await;
        fleet.sidecars[0].signal(Signal::TERM);
    };
    let updated = async {
        fleet.at(9).await;
        let view = &get(&fleet.sidecars[2].telemetry, "/status.json").await.json()["fleet"];
        assert_eq!((&view["region"], &view["all_regions"]), (&HANGZHOU.into(), &true.into()));
    };
    let loads = async {
        let until = fleet.start + std::time::Duration::from_secs(10);
        let stops = fleet.start + std::time::Duration::from_secs(5);
        let ends = [stops, until, until];
        let loads = fleet.sidecars.iter().zip(ends);
        let loads: Vec<_> =
            loads.map(|(sidecar, end)| crate::support::fleet::load(sidecar, 180, end)).collect();
        for load in loads {
            assert!(load.await.unwrap() > 0);
        }
    };
    tokio::join!(loads, middle, updated);
    let calls = fleet.kept("two without a region, and one with").await;
    assert!(mean(&calls[4..9]) > 0.8 * N as f64, "{calls:?}");
    // The ceiling of its region was never made.
    let keys: usize = redis.tell(&format!("EXISTS {}", keys(&format!("region:{HANGZHOU}"))[1]));
    assert_eq!(keys, 0);
}

#[tokio::test]
async fn each_region_has_a_ceiling() {
    let _one = beside_others().await;
    let redis = Redis::start();
    redis.begin(&[(&format!("region:{HANGZHOU}"), N)]);
    redis.begin(&[(&format!("region:{SINGAPORE}"), N)]);
    let emulator = Emulator::start(&["--account-qps", "0", "--egress-ip-qps", "0"]).await;
    let mut fleet = Fleet { emulator, sidecars: Vec::new(), start: Instant::now() };
    for region in [HANGZHOU, SINGAPORE] {
        let more = [("fleet.url", redis.url()), ("fleet.region", region.to_owned())];
        fleet.join(1, &more).await;
    }
    fleet.start = Instant::now();
    fleet.load(6).await;
    let report = fleet.emulator.report().await;
    let worst = report["worst_second"].as_u64().unwrap();
    assert!((N * 3 / 2..=2 * N).contains(&worst), "{report}");
    until("both are listed, with their regions", async || {
        let members = get(&fleet.sidecars[0].telemetry, "/status.json").await.json();
        let members = members["fleet"]["members"].as_array().unwrap().clone();
        let has = |region: &str| members.iter().any(|member| member["region"] == region);
        has(HANGZHOU) && has(SINGAPORE)
    })
    .await;
}
