//! `permits.lua` on a real Redis against its model: equal answers and equal state, whatever comes.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use redis::{Commands, Connection};

use super::words::{HOLD, TIMES};
use crate::ceiling::model::{Ask, Back, Gets, Kept, Out, serve, serve_region};
use crate::ceiling::script_client::SCRIPT;
use crate::redis_client::server::Redis;

/// The script with a clock and an incarnation that the test sets.
fn scripted() -> String {
    assert_eq!(SCRIPT.matches("redis.call('TIME')").count(), 1);
    assert_eq!(SCRIPT.matches("redis.call('INFO', 'server', 'replication')").count(), 1);
    SCRIPT.replace("redis.call('TIME')", "{ 0, redis.call('GET', 'test:now') }").replace(
        "redis.call('INFO', 'server', 'replication')",
        "'run_id:' .. redis.call('GET', 'test:run') .. ' master_replid:one'",
    )
}

#[derive(Debug, Clone)]
enum Step {
    Pass(i64),
    Ask {
        sidecar: Sidecar,
        figures: Vec<i64>,
        want: usize,
        core: usize,
        park: bool,
        /// How long ago the latest answered call was sent; `None`: none was.
        answered: Option<i64>,
        back: Vec<Giving>,
    },
    NewRun,
    /// Some of its keys are gone.
    Flush(usize),
}

/// Whose calls it shares.
#[derive(Debug, Clone, Copy)]
enum Sidecar {
    OfRegion,
    OfAllRegions,
}

/// What is given back: of all that ever went out, so that some are stale.
#[derive(Debug, Clone)]
struct Giving {
    which: prop::sample::Index,
    latest: bool,
    free_in: i64,
}

fn giving() -> impl Strategy<Value = Giving> {
    let free_in = prop_oneof![Just(0), 0..1_001_000_i64, Just(HOLD)];
    (any::<prop::sample::Index>(), prop::bool::weighted(0.8), free_in)
        .prop_map(|(which, latest, free_in)| Giving { which, latest, free_in })
}

fn step(account: i64, egress: Option<i64>) -> impl Strategy<Value = Step> {
    let pass = prop_oneof![
        4 => 0..5_000_i64,
        4 => 5_000..1_200_000_i64,
        1 => 1_200_000..12_000_000_i64,
        1 => Just(30_000_000_i64),
    ];
    let figures = move |lower: bool| {
        let scale = |n: i64| if lower { (n * 2 / 3).max(1) } else { n };
        std::iter::once(scale(account)).chain(egress).collect::<Vec<_>>()
    };
    let back = prop::collection::vec(giving(), 0..12);
    let answered = prop::option::weighted(0.7, prop_oneof![0..2_000_000_i64, 0..60_000_000_i64]);
    let park = prop::bool::weighted(0.1);
    let sidecar =
        prop_oneof![6 => Just(Sidecar::OfRegion), 1 => Just(Sidecar::OfAllRegions)].boxed();
    let ask = (sidecar, prop::bool::weighted(0.05), 0..40_usize, 0..40_usize, park, answered, back)
        .prop_map(move |(sidecar, lower, want, core, park, answered, back)| Step::Ask {
            sidecar,
            figures: figures(lower),
            want,
            core,
            park,
            answered,
            back,
        });
    prop_oneof![
        8 => pass.prop_map(Step::Pass),
        20 => ask,
        1 => Just(Step::NewRun),
        1 => (0..12_usize).prop_map(Step::Flush),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let figures = prop::sample::select(vec![
        (1, None),
        (7, None),
        (300, None),
        (1_000, Some(300)),
        (7, Some(3)),
        (2_300, None),
    ]);
    figures.prop_flat_map(|(account, egress)| prop::collection::vec(step(account, egress), 1..60))
}

/// The region's, perhaps a group's, and those of all regions.
fn keys(ceilings: usize) -> Vec<String> {
    let names = [&["region", "egress"][..ceilings], &["account"]].concat();
    let parts = ["", ":state", ":parked", ":out"];
    let key = |name: &str, part: &str| format!("tollgate:{{t}}:{name}{part}");
    names.iter().flat_map(|name| parts.map(|part| key(name, part))).collect()
}

fn joined(numbers: &[i64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// As the script writes it.
type Reply = (i64, i64, i64, i64, String, i64, i64, i64, Vec<String>);

fn asks(connection: &mut Connection, sha: &str, sidecar: Sidecar, ask: &Ask) -> Gets {
    let mut keys = keys(ask.figures.len());
    if let Sidecar::OfAllRegions = sidecar {
        let wide = keys.split_off(keys.len() - 4);
        keys.splice(..4, wide);
    }
    asks_with(connection, sha, &keys, ask)
}

fn asks_with(connection: &mut Connection, sha: &str, keys: &[String], ask: &Ask) -> Gets {
    let mut command = redis::cmd("EVALSHA");
    command.arg(sha).arg(keys.len()).arg(keys).arg(joined(&ask.figures));
    command.arg(ask.want).arg(ask.core).arg(u8::from(ask.park));
    command.arg(ask.answered).arg(ask.cycle).arg(ask.min).arg(ask.hold);
    for back in &ask.back {
        command.arg(format!("{}:{}:{}", joined(&back.ids), back.nonce, back.free_in));
    }
    let reply: Reply = command.query(connection).unwrap();
    let (now, learn_in, short, ask_in, figures, parked, owed, wide, out) = reply;
    let numbers = |text: &str| text.split(',').map(|n| n.parse().unwrap()).collect::<Vec<i64>>();
    let out = out.iter().map(|out| {
        let parts: Vec<_> = out.split(':').collect();
        Out {
            ids: numbers(parts[0]),
            nonce: parts[1].parse().unwrap(),
            ready_in: parts[2].parse().unwrap(),
        }
    });
    let (figures, out) = (numbers(&figures), out.collect());
    Gets { now, learn_in, short, ask_in, figures, parked, owed, wide, out }
}

/// What the server keeps, in the model's words.
fn kept(connection: &mut Connection, ceilings: usize) -> Vec<Kept> {
    let scores = |connection: &mut Connection, key: &str| -> BTreeMap<i64, i64> {
        connection.zrange_withscores(key, 0, -1).unwrap()
    };
    keys(ceilings)
        .chunks(4)
        .map(|keys| {
            let state: HashMap<String, String> = connection.hgetall(&keys[1]).unwrap();
            let permits = scores(connection, &keys[0]);
            // What is not whole is none.
            if state.is_empty() || permits.is_empty() {
                return Kept::default();
            }
            let number = |name: &str| state[name].parse().unwrap();
            let size: i64 = number("size");
            assert!(permits.keys().copied().eq(0..size));
            Kept {
                run: state["run"].clone(),
                permits: permits.into_values().collect(),
                parked: scores(connection, &keys[2]),
                out: scores(connection, &keys[3]),
                learn: number("learn"),
                goal: number("goal"),
                goal_at: number("goal_at"),
                tick: number("tick"),
                pace: number("pace"),
                short_at: number("short_at"),
                owe: number("owe"),
                batch: number("batch"),
                parked_at: number("parked_at"),
                answered: number("answered"),
            }
        })
        .collect()
}

#[test]
fn the_script_is_its_model() {
    let redis = Redis::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&steps(), |steps| {
        let mut connection = redis.connection();
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        let sha: String =
            redis::cmd("SCRIPT").arg("LOAD").arg(scripted()).query(&mut connection).unwrap();
        let (mut now, mut run) = (1_795_451_930_246_754_i64, 1);
        let (mut model, mut wide) = (Vec::new(), Kept::default());
        let mut given: Vec<Out> = Vec::new();
        for step in steps {
            match step {
                Step::Pass(time) => now += time,
                Step::NewRun => run += 1,
                Step::Flush(which) => {
                    // The state and the permits are held against each other; what is parked is not.
                    let all = keys(model.len());
                    let Some(key) = all
                        .get(which)
                        .filter(|key| !key.ends_with("parked") && !key.ends_with("out"))
                    else {
                        continue;
                    };
                    let () = connection.del(key).unwrap();
                    *model.get_mut(which / 4).unwrap_or(&mut wide) = Kept::default();
                }
                Step::Ask { sidecar, figures, want, core, park, answered, back } => {
                    let from = given.len().saturating_sub(20);
                    let back = back.iter().filter(|_| !given.is_empty()).map(|giving| {
                        let given = if giving.latest { &given[from..] } else { &given[..] };
                        let out = giving.which.get(given);
                        Back { ids: out.ids.clone(), nonce: out.nonce, free_in: giving.free_in }
                    });
                    let answered = answered.map_or(0, |ago| now - ago);
                    let back = back.collect();
                    let ask = Ask { figures, want, core, park, answered, back, ..TIMES };
                    let () = connection.set("test:now", now).unwrap();
                    let () = connection.set("test:run", run).unwrap();
                    let incarnation = format!("{run}:one");
                    let expected = match sidecar {
                        Sidecar::OfRegion => {
                            serve_region(&mut model, &mut wide, &ask, &incarnation, now)
                        }
                        Sidecar::OfAllRegions => {
                            model.resize_with(ask.figures.len(), Kept::default);
                            std::mem::swap(&mut model[0], &mut wide);
                            let gets = serve(&mut model, &ask, &incarnation, now);
                            std::mem::swap(&mut model[0], &mut wide);
                            gets
                        }
                    };
                    let got = asks(&mut connection, &sha, sidecar, &ask);
                    prop_assert_eq!(&got, &expected);
                    let all = [&model[..], std::slice::from_ref(&wide)].concat();
                    prop_assert_eq!(&kept(&mut connection, ask.figures.len()), &all);
                    given.extend(got.out);
                }
            }
        }
        Ok(())
    });
    outcome.unwrap();
}

/// Also where the sidecar that made it died before it could say so.
#[test]
fn the_ceiling_of_all_regions_is_forgotten_in_time() {
    let redis = Redis::start();
    let mut connection = redis.connection();
    let sha: String =
        redis::cmd("SCRIPT").arg("LOAD").arg(scripted()).query(&mut connection).unwrap();
    let () = connection.set("test:now", 1_795_451_930_246_754_i64).unwrap();
    let () = connection.set("test:run", 1).unwrap();
    let ask = Ask { figures: vec![7], ..TIMES };
    asks(&mut connection, &sha, Sidecar::OfAllRegions, &ask);
    assert_eq!(asks(&mut connection, &sha, Sidecar::OfRegion, &ask).wide, 1);
    for key in &keys(1)[4..6] {
        let left: i64 = connection.pttl(key).unwrap();
        let day = 24 * 3_600_000;
        assert!((6 * day..=7 * day).contains(&left), "{key}: {left}");
    }
    // Nor does another request put that off, and the region's own is made after it.
    let () = connection.pexpire(&keys(1)[5], 60_000).unwrap();
    asks(&mut connection, &sha, Sidecar::OfRegion, &ask);
    assert!(connection.pttl::<_, i64>(&keys(1)[5]).unwrap() <= 60_000);
    let () = connection.del(&keys(1)[5]).unwrap();
    let gets = asks(&mut connection, &sha, Sidecar::OfRegion, &ask);
    assert_eq!((gets.wide, gets.learn_in > 29_000_000), (0, true));
}

/// Two regions on one server, and the model of both.
struct TwoRegions {
    connection: Connection,
    sha: String,
    now: i64,
    regions: [(Vec<String>, Vec<Kept>); 2],
    wide: Kept,
}

impl TwoRegions {
    fn start(redis: &Redis) -> Self {
        let mut connection = redis.connection();
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        let () = connection.set("test:run", 1).unwrap();
        let sha = redis::cmd("SCRIPT").arg("LOAD").arg(scripted()).query(&mut connection).unwrap();
        let named = |name: &str| keys(1).iter().map(|key| key.replace("region", name)).collect();
        let regions = ["region", "other"].map(|name| (named(name), Vec::new()));
        Self { connection, sha, now: 1_795_451_930_246_754, regions, wide: Kept::default() }
    }

    fn ask(&mut self, region: usize, back: Vec<Back>) -> Vec<Out> {
        let ask = Ask { figures: vec![7], want: 7, answered: self.now - 1, back, ..TIMES };
        let () = self.connection.set("test:now", self.now).unwrap();
        let (keys, kept) = &mut self.regions[region];
        let expected = serve_region(kept, &mut self.wide, &ask, "1:one", self.now);
        let got = asks_with(&mut self.connection, &self.sha, keys, &ask);
        assert_eq!(got, expected);
        got.out
    }

    /// A sidecar without a region comes.
    fn begin_wide(&mut self) {
        let ask = Ask { figures: vec![7], ..TIMES };
        let () = self.connection.set("test:now", self.now).unwrap();
        let mut kept = vec![Kept::default()];
        let expected = serve(&mut kept, &ask, "1:one", self.now);
        self.wide = kept.remove(0);
        assert_eq!(asks(&mut self.connection, &self.sha, Sidecar::OfAllRegions, &ask), expected);
    }
}

/// Each of two regions has a holder of a permit with the same id when the ceiling of all regions begins. What one
/// of them gives back then is leased to no third while the other may still have it.
#[test]
fn what_a_region_gives_back_is_not_leased_while_another_has_it() {
    let redis = Redis::start();
    // Given back as cooled, and as one whose call has no answer.
    for free_in in [0, HOLD] {
        let mut fleet = TwoRegions::start(&redis);
        let mut held = [BTreeMap::new(), BTreeMap::new()];
        for _ in 0..120 {
            fleet.now += 400_000;
            for (region, held) in held.iter_mut().enumerate() {
                held.extend(fleet.ask(region, Vec::new()).into_iter().map(|out| (out.ids[0], out)));
            }
        }
        let now = fleet.now;
        for held in &mut held {
            held.retain(|_, out| out.nonce - HOLD + TIMES.cycle > now + 2_000_000);
        }
        assert!(held[0].keys().any(|id| held[1].contains_key(id)), "{held:?}");

        fleet.begin_wide();
        let warm = fleet.wide.learn;
        let mut back: Vec<_> = held[0]
            .values()
            .map(|out| Back { ids: out.ids.clone(), nonce: out.nonce, free_in })
            .collect();
        let mut leased = Vec::new();
        while fleet.now < warm + 5_000_000 {
            for region in 0..2 {
                let out = fleet.ask(region, std::mem::take(&mut back));
                let early = out.iter().find(|out| fleet.now + out.ready_in < warm);
                assert!(early.is_none(), "in the warm-up: {early:?}");
                leased.extend(out.into_iter().map(|out| out.ids[0]));
            }
            fleet.now += 400_000;
        }
        let all = leased.len();
        leased.sort_unstable();
        leased.dedup();
        assert!(!leased.is_empty() && leased.len() == all, "twice: {leased:?}");
    }
}
