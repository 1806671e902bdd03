//! Real sidecars share one ceiling through a real Redis, before one emulator that counts: never over
//! it in any sliding second, whatever happens to Redis or to a sidecar. What takes longer is in
//! `tests/soak/fleets.rs`.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use crate::support::fleet::{Fleet, N, To, Way, becomes, mean, metric, mode, redis};
use crate::support::http::post;
use crate::support::process::{Emulator, Serve, run};
use crate::support::redis::{Redis, keys};
use crate::support::{beside_others, until};
use rustix::process::{Pid, Signal, kill_process};

const SIDECARS: usize = 5;

#[tokio::test]
async fn five_at_three_times_the_ceiling_and_one_killed() {
    let _one = beside_others().await;
    let redis = redis();
    let mut fleet = Fleet::start(&vec![redis.url(); SIDECARS]).await;
    let killed = fleet.sidecars.pop().unwrap();
    let doomed =
        Fleet { emulator: Emulator::start(&[]).await, sidecars: vec![killed], start: fleet.start };
    let middle = async {
        fleet.at(3).await;
        redis.tell::<()>("CONFIG RESETSTAT");
        fleet.at(8).await;
        let stats: String = redis.tell("INFO commandstats");
        println!("in 5 s: {}", stats.lines().find(|line| line.contains("evalsha")).unwrap());
        assert!(mode(&fleet.sidecars[0], "shared").await);
        let mut shares = 0.0;
        for sidecar in fleet.sidecars.iter().chain(&doomed.sidecars) {
            let name = "tollgate_ceiling_share_calls_per_second{ceiling=\"account\"}";
            shares += metric(sidecar, name).await;
        }
        // They are asked one after the other.
        assert!((200.0..=330.0).contains(&shares), "{shares} permits are held");
        fleet.at(11).await;
        doomed.sidecars[0].signal(Signal::KILL);
    };
    tokio::join!(fleet.load(20), doomed.load(10), middle);
    let calls = fleet.kept("five, and four of them").await;
    assert!(mean(&calls[4..9]) > 0.9 * N as f64, "{calls:?}");
    // What the killed one held is lost until its leases end: a fifth.
    assert!(mean(&calls[13..18]) > 0.7 * N as f64, "{calls:?}");

    // Who is asked to stop gives all back.
    for sidecar in fleet.sidecars.drain(..) {
        sidecar.signal(Signal::TERM);
        assert!(sidecar.ended().await.0.success());
    }
    let mut connection = redis.connection();
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut connection).unwrap();
    let mut count = redis::cmd("ZCOUNT");
    count.arg(&keys("account")[0]).arg((seconds + 2) * 1_000_000).arg("+inf");
    let out: u64 = count.query(&mut connection).unwrap();
    println!("{out} permits are still out: the killed one's");
    assert!(out <= N / 4, "{out}");
}

#[tokio::test]
async fn redis_stands_still() {
    let _one = beside_others().await;
    let redis = redis();
    let fleet = Fleet::start(&vec![redis.url(); SIDECARS]).await;
    let pid = Pid::from_raw(redis.pid()).unwrap();
    let stops = async {
        fleet.at(6).await;
        kill_process(pid, Signal::STOP).unwrap();
        fleet.at(11).await;
        kill_process(pid, Signal::CONT).unwrap();
    };
    tokio::join!(fleet.load(18), stops);
    let calls = fleet.kept("Redis stopped for 5 s").await;
    assert!(mean(&calls[7..10]) > 0.7 * N as f64, "calls go on with what is held: {calls:?}");
    assert!(mean(&calls[13..16]) > 0.8 * N as f64, "{calls:?}");
}

#[tokio::test]
async fn redis_comes_back_empty() {
    let _one = beside_others().await;
    let mut redis = redis();
    let fleet = Fleet::start(&vec![redis.url(); SIDECARS]).await;
    let dies = async {
        fleet.at(6).await;
        redis.kill();
        becomes(&fleet.sidecars[0], "cut_off").await;
        fleet.at(16).await;
        redis.restart();
    };
    tokio::join!(fleet.load(28), dies);
    let calls = fleet.kept("Redis killed, and empty after 10 s").await;
    assert!(mean(&calls[8..14]) > 0.7 * N as f64, "calls go on with what is held: {calls:?}");
    // All that was held was brought back.
    assert!(mean(&calls[22..26]) > 0.7 * N as f64, "{calls:?}");
}

/// Five that expect to be so many, and a replica that takes over a second behind. How many calls each
/// second held.
async fn fails_over(expected: usize, seconds: u64) -> Vec<u64> {
    let mut primary = Redis::start();
    let followed = Way::to(primary.port).await;
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &followed.port.to_string()]);
    let follows = async || replica.tell::<String>("INFO").contains("master_link_status:up");
    until("the replica follows", follows).await;
    // A first replica makes it another primary.
    primary.begin(&[("account", N)]);
    let way = Way::to(primary.port).await;
    let member = [("fleet.url", way.url()), ("fleet.expected_sidecars", expected.to_string())];
    let members = vec![member.to_vec(); SIDECARS];
    let fleet = Fleet::start_with(&["--egress-ip-qps", "0"], &members).await;
    let permits = format!("ZRANGE {} 0 -1 WITHSCORES", keys("account")[0]);
    let moves = async {
        fleet.at(6).await;
        followed.lead(To::Nobody);
        fleet.at(7).await;
        let (before, behind): (Vec<String>, Vec<String>) =
            (primary.tell(&permits), replica.tell(&permits));
        assert_ne!(before, behind, "a second of what happened is lost");
        primary.kill();
        replica.tell::<()>("REPLICAOF NO ONE");
        way.lead(To::Port(replica.port));
    };
    tokio::join!(fleet.load(seconds), moves);
    fleet.kept(&format!("failover, {expected} expected")).await
}

#[tokio::test]
async fn a_replica_takes_over_a_second_behind() {
    let _one = beside_others().await;
    let calls = fails_over(SIDECARS, 18).await;
    assert!(mean(&calls[8..18]) > 0.9 * N as f64, "{calls:?}");
}

/// With small cores permits go round through Redis: a second of it is many of them, and what is there
/// and not with a sidecar is lost until leases have ended.
#[tokio::test]
async fn a_replica_takes_over_where_more_are_expected() {
    let _one = beside_others().await;
    let calls = fails_over(100, 12).await;
    assert!(mean(&calls[8..12]) > 0.3 * N as f64, "{calls:?}");
}

/// Two addresses, as behind two NAT gateways, each with its own ceiling below the account's.
#[tokio::test]
async fn two_egress_groups_under_one_account() {
    let _one = beside_others().await;
    let redis = redis();
    let each = 200;
    let member = |group: &str, address: &str| {
        vec![
            ("fleet.url", redis.url()),
            ("fleet.egress_group", group.to_owned()),
            ("ceilings.egress_ip", each.to_string()),
            ("upstream.egress_addresses", format!("[\"{address}\"]")),
        ]
    };
    let mut members = Vec::new();
    for (group, address) in [("a", "127.0.0.2"), ("b", "127.0.0.3")] {
        redis.begin(&[("account", N), (&format!("egress:{group}"), each)]);
        members.extend([member(group, address), member(group, address)]);
    }
    let fleet = Fleet::start_with(&["--egress-ip-qps", &each.to_string()], &members).await;
    fleet.load(12).await;
    let (calls, report) = fleet.never_over("two groups").await;
    let sources = report["worst_second_by_source"].as_object().unwrap();
    println!("by source {sources:?} of {each}");
    assert_eq!(sources.len(), 2);
    assert!(sources.values().all(|worst| worst.as_u64().unwrap() <= each), "{report}");
    assert_eq!(report["refused"], serde_json::json!({}));
    assert!(mean(&calls[4..11]) > 0.85 * N as f64, "{calls:?}");
}

/// One sidecar is told that the account is over: a tenth of all permits rests, wherever they are.
#[tokio::test]
async fn push_back_at_one_is_known_to_all() {
    let _one = beside_others().await;
    let redis = redis();
    let fleet = Fleet::start(&vec![redis.url(); SIDECARS]).await;
    let told = async {
        fleet.at(8).await;
        let fault = br#"[{"code":"Throttling.User","topic":"Told"}]"#;
        post(&fleet.emulator.address, "/_emulator/faults", &[], fault).await;
        let answer = post(&fleet.sidecars[0].publish, "/publish/Told", &[], b"x").await;
        assert_eq!(answer.status, 429);
        for sidecar in &fleet.sidecars {
            let parked = "tollgate_ceiling_parked_permits{ceiling=\"account\"}";
            until("it knows", async || metric(sidecar, parked).await > 25.0).await;
        }
        jiff::Timestamp::now().as_second()
    };
    let ((), known) = tokio::join!(fleet.load(23), told);
    let (calls, report) = fleet.never_over("push-back at one").await;
    let pushed_back = report["refused"]["Throttling.User"].as_u64().unwrap();
    assert!((1..5).contains(&pushed_back), "{report}");
    // A process that starts sends little until its first answer has settled what may have been before.
    assert!(mean(&calls[4..7]) > 0.92 * N as f64, "{calls:?}");
    // A permit rests 15 s at least, and what was on its way is over in two.
    let seconds = report["by_second"].as_array().unwrap().iter();
    let resting =
        seconds.filter(|s| (known + 2..known + 8).contains(&s["second"].as_i64().unwrap()));
    let resting: Vec<_> = resting.map(|s| s["calls"].as_u64().unwrap()).collect();
    assert_eq!(resting.len(), 6, "it took too long to be known");
    assert!(resting.iter().all(|calls| *calls <= N * 9 / 10), "{resting:?} of {calls:?}");
    assert!(mean(&resting) > 0.7 * N as f64, "{resting:?} of {calls:?}");
}
/// Who shares the ceiling, as each of them tells it.
async fn members(of: &Serve) -> serde_json::Value {
    let said = run(&["status", "--fleet", "--at", &of.telemetry, "-o", "json"], &[]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    serde_json::from_str(&said.stdout).unwrap()
}

#[tokio::test]
async fn who_is_in_the_fleet() {
    let _one = beside_others().await;
    let redis = redis();
    let mut fleet = Fleet::start(&vec![redis.url(); 3]).await;
    let first = fleet.sidecars.remove(0);
    let mut seen = serde_json::Value::Null;
    until("all are there", async || {
        seen = members(&first).await;
        seen["size"] == 3
    })
    .await;
    assert_eq!((&seen["mode"], &seen["account"]), (&"shared".into(), &"default".into()));
    let listed = seen["members"].as_array().unwrap();
    assert_eq!(listed.len(), 3);
    for member in listed {
        assert_eq!(
            (&member["starved"], &member["waiting"]),
            (&false.into(), &0.into()),
            "{member}"
        );
        assert_eq!(member["version"], env!("CARGO_PKG_VERSION"));
    }
    assert!((metric(&first, "tollgate_fleet_sidecars").await - 3.0).abs() < 0.5);
    let told = run(&["status", "--fleet", "--at", &first.telemetry], &[]).await.stdout;
    assert!(told.contains("3 sidecars"), "{told}");
    let title = told.lines().find(|line| line.starts_with("SIDECAR")).expect("a table");
    let under = title.find("SHARE").unwrap() + "SHARE".len();
    let rows: Vec<_> = told.lines().skip_while(|line| *line != title).skip(1).collect();
    let stands =
        |row: &&str| row.is_char_boundary(under) && row[..under].ends_with(char::is_numeric);
    assert!(rows.len() == 3 && rows.iter().all(stands), "{told}");

    // Who leaves is gone at once, who dies a little later.
    let leaves = fleet.sidecars.remove(0);
    leaves.signal(Signal::TERM);
    assert!(leaves.ended().await.0.success());
    until("it has left", async || members(&first).await["size"] == 2).await;
    fleet.sidecars[0].signal(Signal::KILL);
    until("the dead one is forgotten", async || members(&first).await["size"] == 1).await;

    // Without Redis nobody hangs.
    drop(redis);
    until("it is cut off", async || members(&first).await["mode"] != "shared").await;

    let alone = Serve::start(&[("upstream.endpoint", "http://127.0.0.1:1")], &[]).await;
    let said = run(&["status", "--fleet", "--at", &alone.telemetry], &[]).await;
    assert!(said.code == 1 && said.stderr.contains("fleet.url"), "{}", said.stderr);
}
