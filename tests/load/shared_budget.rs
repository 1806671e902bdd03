//! A budget that thirty sidecars share: some are killed and start again, Redis is stopped and comes back empty. The provider
//! never takes more than the budget, and nearly all of it can be used.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::time::Duration;

use crate::support::fleet::{Fleet, redis};
use crate::support::http::post;
use crate::support::{alone, until};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

const SIDECARS: usize = 30;
const KILLED: usize = 6;
const BUDGET: u64 = 6_000;
/// Redis comes back empty, and permits are learnt anew for 30 s: it takes no longer until calls are made again.
const LEARNT: Duration = Duration::from_secs(90);

fn member(number: usize, url: &str, folder: &std::path::Path) -> Vec<(&'static str, String)> {
    let budget = format!(
        "[{{ name = \"all\", messages = {BUDGET}, period = \"month\", on_exceed = \"refuse\", scope = \"fleet\" }}]"
    );
    let path = folder.join(number.to_string()).display().to_string();
    vec![
        ("fleet.url", url.to_owned()),
        ("billing.budgets", budget),
        ("spool.store", "disk".to_owned()),
        ("spool.path", path),
    ]
}

/// Callers that publish one message after another, and wait for a moment where one is refused. Until the task is aborted.
fn callers(address: &str, count: usize) -> tokio::task::JoinSet<()> {
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..count {
        let address = address.to_owned();
        callers.spawn(async move {
            loop {
                let sent = post(&address, "/publish/TopicA/x", &[], b"x");
                let is_sent = tokio::time::timeout(Duration::from_secs(20), sent).await;
                if !is_sent.is_ok_and(|answer| answer.status == 200) {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    callers
}

#[tokio::test]
async fn thirty_sidecars_share_a_budget() {
    let _alone = alone().await;
    let mut redis = redis();
    let url = redis.url();
    let folder = tempfile::tempdir().unwrap();
    let members: Vec<_> = (0..SIDECARS).map(|n| member(n, &url, folder.path())).collect();
    let mut fleet = Fleet::start_with(&["--egress-ip-qps", "0"], &members).await;
    let mut load: Vec<_> =
        fleet.sidecars.iter().map(|sidecar| Some(callers(&sidecar.publish, 2))).collect();
    let accepted = async |fleet: &Fleet| {
        let accepted = fleet.emulator.report().await["accepted"].as_u64().unwrap();
        assert!(accepted <= BUDGET, "{accepted} of {BUDGET}");
        accepted
    };
    let grows_to = async |fleet: &Fleet, least: u64| {
        until("they send", async || accepted(fleet).await >= least).await;
    };

    grows_to(&fleet, BUDGET / 6).await;
    let mut killed = 0;
    let mut kill = async |fleet: &mut Fleet, load: &mut Vec<_>, count: usize| {
        for number in killed..killed + count {
            fleet.sidecars[number].signal(Signal::KILL);
            load[number] = None;
            // It starts again with its disk, as a container does.
            fleet.join(SIDECARS, &members[number]).await;
            load.push(Some(callers(&fleet.sidecars.last().unwrap().publish, 2)));
        }
        killed += count;
    };
    kill(&mut fleet, &mut load, KILLED / 2).await;
    let before = accepted(&fleet).await;
    grows_to(&fleet, before + BUDGET / 6).await;

    redis.kill();
    sleep(Duration::from_secs(2)).await;
    redis.restart();
    let emptied = accepted(&fleet).await;
    let end = Instant::now() + LEARNT;
    while accepted(&fleet).await < emptied + BUDGET / 6 {
        assert!(Instant::now() < end, "nothing is sent after {emptied}");
        sleep(Duration::from_millis(200)).await;
    }
    kill(&mut fleet, &mut load, KILLED - KILLED / 2).await;

    // Until no more is taken for some seconds.
    let (mut last, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(8) {
        let now = accepted(&fleet).await;
        if now > last {
            (last, since) = (now, Instant::now());
        }
        sleep(Duration::from_millis(200)).await;
    }
    println!("{last} of {BUDGET} after {KILLED} kills and an emptied Redis");
    assert!(last * 100 >= BUDGET * 97, "{last} of {BUDGET}");
    for sidecar in &fleet.sidecars[KILLED..] {
        let refused = post(&sidecar.publish, "/publish/TopicA/x", &[], b"x").await;
        assert_eq!(
            (refused.status, refused.json()["type"].as_str()),
            (429, Some("urn:tollgate:budget"))
        );
    }
}
