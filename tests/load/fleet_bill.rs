//! The bill of thirty sidecars, of which some are killed, beside the count of the provider that they call: never more,
//! and with what is uncertain never less, at any time.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::time::Duration;

use crate::support;
use crate::support::fleet::{Fleet, N, load, redis};
use crate::support::process::run;
use crate::support::{alone, until};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep};

const SIDECARS: usize = 30;
/// At each sidecar.
const CALLERS: usize = 2;
const KILLED: usize = 9;
const SECONDS: u64 = 14;

/// A third keeps spool and ledger on a disk, as with a volume or a container that starts again.
fn member(number: usize, url: &str, folder: &std::path::Path) -> Vec<(&'static str, String)> {
    let mut settings = vec![("fleet.url", url.to_owned())];
    if number.is_multiple_of(3) {
        settings.push(("spool.store", "disk".to_owned()));
        settings.push(("spool.path", folder.join(number.to_string()).display().to_string()));
    }
    settings
}

async fn bill(url: &str, more: &[&str]) -> Value {
    let sets = [
        format!("fleet.url={url}"),
        format!("ceilings.account={N}"),
        format!("upstream.instance_id={}", support::INSTANCE),
        "upstream.endpoint=http://127.0.0.1:1".to_owned(),
    ];
    let mut args = vec!["bill", "--fleet", "--from", "2h", "-o", "json"];
    args.extend(more);
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let said = run(&args, &[]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    serde_json::from_str(&said.stdout).unwrap()
}

fn sums(bill: &Value) -> (u64, u64) {
    let rows = bill["rows"].as_array().unwrap();
    let sum = |name: &str| rows.iter().map(|row| row[name].as_u64().unwrap()).sum();
    (sum("messages"), sum("uncertain"))
}

async fn accepted(fleet: &Fleet) -> u64 {
    fleet.emulator.report().await["accepted"].as_u64().unwrap()
}

/// The bill of now, with the provider's count before it and after.
async fn within(what: &str, fleet: &Fleet, url: &str) -> Value {
    let before = accepted(fleet).await;
    let bill = bill(url, &[]).await;
    let after = accepted(fleet).await;
    let (messages, uncertain) = sums(&bill);
    println!("{what}: {messages} + {uncertain}? of {before} to {after}; {}", bill["fleet"]);
    assert!(messages <= after, "{what}: {messages} of {after}: none is counted twice");
    // What is in it has been written a moment ago, and the room is for what was made since.
    assert!(before <= messages + uncertain, "{what}: {before} of {messages} and {uncertain}");
    bill
}

#[tokio::test]
async fn thirty_sidecars_of_which_some_are_killed() {
    let _alone = alone().await;
    let redis = redis();
    let url = redis.url();
    let folder = tempfile::tempdir().unwrap();
    let members: Vec<_> = (0..SIDECARS).map(|n| member(n, &url, folder.path())).collect();
    let mut fleet = Fleet::start_with(&["--egress-ip-qps", "0"], &members).await;
    let all_report =
        async || bill(&url, &[]).await["fleet"]["reporting"].as_u64() == Some(SIDECARS as u64);
    until("all have a record", all_report).await;

    let end = Instant::now() + Duration::from_secs(SECONDS);
    let callers: Vec<_> =
        fleet.sidecars.iter().map(|sidecar| load(sidecar, CALLERS, end)).collect();
    let mut late = Vec::new();
    let mut rng = fastrand::Rng::with_seed(20_261_129);
    // Of the last third, one of three starts again.
    let again = (SIDECARS - KILLED..SIDECARS).filter(|number| number.is_multiple_of(3)).count();
    for (kill, number) in (SIDECARS - KILLED..SIDECARS).enumerate() {
        sleep(Duration::from_millis(rng.u64(500..1_300))).await;
        fleet.sidecars[number].signal(Signal::KILL);
        if number.is_multiple_of(3) {
            fleet.join(SIDECARS, &members[number]).await;
            late.push(load(fleet.sidecars.last().unwrap(), CALLERS, end));
        }
        if kill.is_multiple_of(3) {
            within("under load", &fleet, &url).await;
        }
    }
    for (number, load) in callers.into_iter().enumerate() {
        // One that was killed may have had no answer yet.
        let answers = load.await.unwrap();
        assert!(answers > 0 || number >= SIDECARS - KILLED, "{number} had no answer");
    }
    for load in late {
        load.await.unwrap();
    }

    within("after it", &fleet, &url).await;

    // All others stop. With no sidecar running, what was killed is all that is uncertain.
    for (number, sidecar) in fleet.sidecars.drain(..).enumerate() {
        if !(SIDECARS - KILLED..SIDECARS).contains(&number) {
            sidecar.signal(Signal::TERM);
            assert!(sidecar.ended().await.0.success());
        }
    }
    let last = within("at the end", &fleet, &url).await;
    let by_topic = sums(&bill(&url, &["--by", "topic"]).await);
    assert_eq!(by_topic, sums(&last), "no more is written");
    let covered = &last["fleet"];
    assert_eq!(covered["sidecars"].as_u64(), Some((SIDECARS + again) as u64), "{covered}");
    assert_eq!(covered["ended"].as_u64(), Some((SIDECARS - KILLED + again) as u64), "{covered}");
    // Two seconds of the fastest rate of a quarter of a second, and what was in flight.
    let bound = (KILLED as u64) * (2 * 4 * N + CALLERS as u64);
    assert!(covered["unreported"].as_u64().unwrap() <= bound, "{covered}");
    let taken = accepted(&fleet).await;
    let (messages, uncertain) = sums(&last);
    assert!(taken > 1_000, "{taken}");
    println!("{taken} taken; {messages} billable and {uncertain} uncertain after {KILLED} kills");
}
