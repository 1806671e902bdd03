use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::delivery::KeyUsage;
use crate::memory::MemoryUsage;
use crate::meter::Past;
use crate::server::ConnectionUsage;
use crate::telemetry::explanations;
use crate::telemetry::view::{
    BacklogView, BudgetScopeView, ConfigurationView, FleetView, KeptView, KeyView, LastMinuteView,
    MemberView, PausedTopic, SpendView, Today,
};

const NOW: &str = "2026-11-23T03:00:00Z";

fn at(seconds_ago: i64) -> Timestamp {
    let now: Timestamp = NOW.parse().unwrap();
    now - SignedDuration::from_secs(seconds_ago)
}

/// Nothing is wrong.
fn well() -> SidecarStatus {
    let ceiling = |name: &'static str, limit| CeilingView {
        name: name.into(),
        limit,
        used: 0,
        unanswered: 0,
        parked: 0,
        refused: 0,
    };
    let today = Today { messages: 0, uncertain: 0, spend: 0.0 };
    SidecarStatus {
        version: "0".into(),
        commit: "0".into(),
        name: "pod-1".to_owned(),
        instances: vec!["post-cn-1".to_owned()],
        region: "cn-hangzhou".to_owned(),
        endpoint: "provider".to_owned(),
        started: at(3_600),
        now: at(0),
        draining: false,
        accepting: true,
        concerns: Vec::new(),
        last_minute: LastMinuteView::default(),
        tps: 0,
        tps_peak: 0,
        plan_tps: None,
        history: Past::default(),
        billable: 0,
        uncertain: 0,
        ledger_failure: None,
        waiting: 0,
        longest_wait_seconds: 0.0,
        backlog: BacklogView::default(),
        kept: Some(KeptView::default()),
        paused: Vec::new(),
        paused_topics: 0,
        ceilings: vec![ceiling("account", Some(1_000)), ceiling("egress_ip", None)],
        unanswered_max: Duration::from_mins(5),
        egress: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
        blocked: Vec::new(),
        outcomes: BTreeMap::new(),
        topics: BTreeMap::new(),
        spend: SpendView {
            currency: "CNY".to_owned(),
            time_zone: "UTC".to_owned(),
            priced: false,
            today,
            topics: Vec::new(),
            budgets: Vec::new(),
        },
        key: KeyView {
            source: "env".into(),
            loaded: Some(at(3_600)),
            expires: None,
            error: None,
            refused: None,
        },
        last_answer: Some(at(1)),
        last_delivered: Some(at(1)),
        failed_since_delivered: 2,
        clock_skew_seconds: 0.0,
        errors: Vec::new(),
        fleet: None,
        configuration: ConfigurationView {
            hash: 1,
            read: at(3_600),
            error: None,
            pending: Vec::new(),
            lifted: Vec::new(),
        },
        connections: ["publish", "telemetry"].map(|listener| connections(listener, 79)).into(),
        memory: Some(memory(69)),
        keys: Some(keys(79)),
    }
}

fn keys(reserved: usize) -> KeyUsage {
    KeyUsage { reserved, max: 100 }
}

fn memory(used: u64) -> MemoryUsage {
    MemoryUsage { max: 100, used, refused: 0 }
}

fn connections(listener: &'static str, open: usize) -> ConnectionUsage {
    ConnectionUsage { listener, open, max: 100, made_room: 0, over_share: 0 }
}

fn fleet(mode: Mode) -> FleetView {
    let member = |name: &str| MemberView {
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        region: String::new(),
        egress_group: String::new(),
        share: 500,
        used: 300,
        waiting: 0,
        longest_wait_seconds: 0.0,
        starved: false,
        seen: at(1),
    };
    let members = ["a", "b"].map(member).into();
    let account = "default".to_owned();
    FleetView {
        mode,
        account,
        region: String::new(),
        all_regions: false,
        size: 2,
        opens_in_seconds: 0.0,
        at: Some(at(1)),
        members,
    }
}

fn error(code: &str, seconds_ago: i64) -> CallError {
    let explanation = explanations::of(code);
    CallError {
        request_id: None,
        code: code.to_owned(),
        count: 3,
        last: at(seconds_ago),
        explanation: explanation.what.into(),
        remedy: explanation.remedy.into(),
    }
}

fn paused(topic: &str, denied: Option<AccessDenied>, messages: usize) -> PausedTopic {
    let (instance, topic) = ("post-cn-1".to_owned(), topic.to_owned());
    PausedTopic { instance, topic, why: "".into(), denied, messages }
}

fn budget(used: f64, on_exceed: OnExceed) -> BudgetView {
    let remaining_ratio = 1.0 - (used + 5.0) / 100.0;
    let (name, unit) = ("daily".to_owned(), Unit::Money("CNY".to_owned()));
    let resets_at = at(-7_200);
    BudgetView {
        name,
        unit,
        limit: 100.0,
        used,
        reserved: 5.0,
        remaining_ratio,
        resets_at,
        on_exceed,
        scope: BudgetScopeView::Sidecar,
    }
}

fn kept(change: impl FnOnce(&mut KeptView)) -> KeptView {
    let mut kept = KeptView::default();
    change(&mut kept);
    kept
}

type Case = (&'static str, fn(&mut SidecarStatus), &'static [(Level, &'static str)]);

use Level::{Bad, Warn};

/// A status, and its concerns, worst first.
#[rustfmt::skip]
const CASES: &[Case] = &[
    ("all is well", |_| {}, &[]),
    ("no spool", |s| s.kept = None, &[]),
    ("stopping", |s| s.draining = true, &[(Bad, "tollgate is stopping")]),

    ("no key", |s| s.key.loaded = None, &[(Bad, "No access key")]),
    ("an expired key", |s| s.key.expires = Some(at(5)), &[(Bad, "The access key has expired")]),
    ("a key of an hour, renewed soon", |s| s.key.expires = Some(at(-300)), &[]),
    ("that was not renewed", |s| s.key.expires = Some(at(-299)), &[(Warn, "The access key expires soon")]),
    ("since its source fails", |s| { s.key.expires = Some(at(-299)); s.key.error = Some("x".into()); },
        &[(Bad, "The access key expires soon")]),
    ("a key of five minutes, at its half", |s| { s.key.loaded = Some(at(150)); s.key.expires = Some(at(-150)); }, &[]),
    ("a source that fails in time", |s| s.key.error = Some("x".into()), &[(Warn, "The access key cannot be renewed")]),

    ("a wrong key", |s| { s.last_delivered = None; s.errors = vec![error("SignatureDoesNotMatch", 100)]; },
        &[(Bad, "The provider rejects the access key")]),
    ("that is over", |s| s.errors = vec![error("SignatureDoesNotMatch", 100)], &[]),
    ("another one has let its messages pass", |s| s.errors = vec![error("SignatureDoesNotMatch", 9)],
        &[(Warn, "The provider rejects the access key")]),
    ("one call of a service that sends seldom", |s| {
        s.last_delivered = Some(at(300));
        s.errors = vec![error("SendMessageFailed", 4)];
        s.failed_since_delivered = 1;
    }, &[(Warn, "Nothing is delivered")]),
    ("one topic is barred, others pass", |s| s.errors = vec![error("PermissionCheckFailed", 9)],
        &[(Bad, "The provider denies permission")]),
    ("a barred lane without an error", |s| s.paused = vec![paused("TopicA", Some(AccessDenied::Clock), 7)],
        &[(Bad, "The provider rejects this machine's clock")]),
    ("a lane and its error are one concern", |s| {
        s.paused = vec![paused("TopicA", Some(AccessDenied::Endpoint), 7)];
        s.errors = vec![error("ApiNotSupport", 2)];
    }, &[(Bad, "The provider's endpoint does not support the call")]),
    ("an error of a quarter of an hour ago", |s| { s.last_delivered = None; s.errors = vec![error("Forbidden.RAM", 1_000)]; }, &[]),

    ("a failing lane", |s| s.paused = vec![paused("TopicA", None, 9)], &[(Bad, "Delivery fails for TopicA")]),
    ("many of them", |s| s.paused = (0..9).map(|i| paused(&format!("T{i}"), None, 1)).collect(),
        &[(Bad, "Delivery fails for T0, T1, T2 and 6 more")]),
    ("now and then a failure", |s| s.errors = vec![error("SendMessageFailed", 3), error("timeout", 4)], &[]),
    ("nothing but failures", |s| { s.last_delivered = Some(at(60)); s.errors = vec![error("connect", 3)]; },
        &[(Bad, "Nothing is delivered")]),
    ("a refused message is its caller's", |s| { s.last_delivered = None; s.errors = vec![error("ParameterCheckFailed", 3)]; }, &[]),

    ("one address is blocked", |s| s.blocked = vec!["10.0.0.1".into()], &[(Warn, "Egress addresses are probably blocked")]),
    ("all are", |s| s.blocked = s.egress.clone(), &[(Bad, "Egress addresses are probably blocked")]),

    ("a fleet", |s| s.fleet = Some(fleet(Mode::Shared)), &[]),
    ("cut off", |s| s.fleet = Some(fleet(Mode::CutOff)), &[(Warn, "Redis does not answer")]),
    ("for long", |s| s.fleet = Some(fleet(Mode::Closed)), &[(Bad, "Cut off from the fleet")]),
    ("a new Redis", |s| s.fleet = Some(FleetView { opens_in_seconds: 12.3, ..fleet(Mode::Shared) }), &[(Warn, "Redis is learning which permits are in use")]),
    ("starved", |s| { let mut fleet = fleet(Mode::Shared); fleet.members[1].starved = true; s.fleet = Some(fleet); },
        &[(Warn, "Sidecars get too few permits")]),

    ("below the ceiling", |s| s.ceilings[0].used = 949, &[]),
    ("near it", |s| s.ceilings[0].used = 950, &[(Warn, "At the account's ceiling")]),
    ("near the narrower one", |s| { s.ceilings[1].limit = Some(300); s.ceilings[1].used = 290; s.ceilings[0].used = 290; },
        &[(Warn, "At the egress addresses' ceiling")]),
    ("a queue below it", |s| { s.ceilings[0].used = 400; s.longest_wait_seconds = 0.4; }, &[(Warn, "Messages wait for a permit")]),
    ("without a ceiling", |s| { s.ceilings[0].limit = None; s.ceilings[0].used = 9_999; }, &[]),
    ("a few timeouts", |s| s.ceilings[0].unanswered = 99, &[]),
    ("a stall", |s| s.ceilings[0].unanswered = 100, &[(Warn, "Calls get no answer")]),
    ("withheld permits", |s| s.ceilings[0].parked = 1, &[(Warn, "The provider throttles calls")]),

    ("the disk fails", |s| s.kept = Some(kept(|k| k.failure = Some("No space left".into()))), &[(Bad, "The spool cannot be written")]),
    ("Redis fails", |s| s.kept = Some(kept(|k| (k.failure, k.durability) = (Some("OOM".into()), "redis-memory".into()))), &[(Bad, "The spool cannot be written")]),
    ("the spool fills", |s| s.kept = Some(kept(|k| k.full = 0.8)), &[(Warn, "The spool is nearly full")]),
    ("the spool is full", |s| s.kept = Some(kept(|k| k.full = 0.96)), &[(Bad, "The spool is nearly full")]),
    ("young", |s| s.kept = Some(kept(|k| k.oldest = Some(at(299)))), &[]),
    ("old", |s| s.kept = Some(kept(|k| k.oldest = Some(at(301)))), &[(Warn, "Stored messages are old")]),
    ("a dead letter", |s| s.kept = Some(kept(|k| k.dead = 1)), &[(Warn, "1 dead letter")]),
    ("not allowed", |s| s.kept = Some(kept(|k| k.not_allowed = 1)), &[(Warn, "Stored messages may not be sent from here")]),
    ("unverified", |s| s.kept = Some(kept(|k| k.unverified = 2)), &[(Bad, "Stored messages cannot be trusted")]),
    ("dead letters", |s| s.kept = Some(kept(|k| k.dead = 1_234)), &[(Warn, "1,234 dead letters")]),
    ("dropped for room", |s| s.kept = Some(kept(|k| k.dead_dropped_for_room = Some(at(3_599)))), &[(Bad, "Dead letters are dropped for room")]),
    ("long ago", |s| s.kept = Some(kept(|k| k.dead_dropped_for_room = Some(at(3_600)))), &[]),
    ("counted in memory", |s| s.ledger_failure = Some("No space left".into()), &[(Warn, "The ledger cannot be written")]),

    ("a clock", |s| s.clock_skew_seconds = -60.0, &[]),
    ("off", |s| s.clock_skew_seconds = -61.0, &[(Warn, "This machine's clock is off")]),
    ("nearly refused", |s| s.clock_skew_seconds = 899.0, &[(Warn, "This machine's clock is off")]),
    ("too far", |s| s.clock_skew_seconds = 900.0, &[(Bad, "This machine's clock is off")]),

    ("a budget", |s| s.spend.budgets = vec![budget(74.0, OnExceed::Refuse)], &[]),
    ("with what is reserved", |s| s.spend.budgets = vec![budget(75.0, OnExceed::Refuse)], &[(Warn, "Budget daily is nearly used up")]),
    ("used up", |s| s.spend.budgets = vec![budget(95.0, OnExceed::Refuse)], &[(Bad, "Budget daily is used up")]),
    ("and only a warning", |s| s.spend.budgets = vec![budget(95.0, OnExceed::Warn)], &[(Warn, "Budget daily is used up")]),
    ("a plan", |s| { s.plan_tps = Some(500); s.tps_peak = 399; }, &[]),
    ("nearly", |s| { s.plan_tps = Some(500); s.tps_peak = 400; }, &[(Warn, "Near the bought TPS")]),
    ("over", |s| { s.plan_tps = Some(500); s.tps_peak = 501; }, &[(Warn, "Over the bought TPS")]),

    ("many callers", |s| s.connections[0] = connections("publish", 80), &[(Warn, "Connections to publish are nearly used up")]),
    ("a refused new key", |s| s.key.refused = Some("****0002".into()), &[(Warn, "The new access key is refused")]),
    ("many keys", |s| s.keys = Some(keys(80)), &[(Warn, "Idempotency keys are nearly used up")]),
    ("all keys", |s| s.keys = Some(keys(100)), &[(Bad, "Idempotency keys are nearly used up")]),
    ("large messages", |s| s.memory = Some(memory(70)), &[(Warn, "The memory for messages is nearly used up")]),
    ("many probes", |s| s.connections[1] = connections("telemetry", 100), &[(Warn, "Connections to telemetry are nearly used up")]),

    ("an invalid change", |s| s.configuration.error = Some("1 mistake".into()), &[(Warn, "The changed configuration is invalid")]),
    ("a change of keys that are read at start", |s| s.configuration.pending = vec!["fleet.url".into()],
        &[(Warn, "A changed configuration waits for a restart")]),
    ("no ceilings", |s| s.configuration.lifted = vec!["a".into(), "b".into()], &[(Warn, "A ceiling is lifted"), (Warn, "A ceiling is lifted")]),
    ("no ceiling", |s| s.configuration.lifted = vec!["ceilings.account is \"none\"".into()], &[(Warn, "A ceiling is lifted")]),

    ("the worst first", |s| {
        s.ceilings[0].parked = 1;
        s.paused = vec![paused("TopicA", None, 9)];
    }, &[(Bad, "Delivery fails for TopicA"), (Warn, "The provider throttles calls")]),
];

#[test]
fn each_status_has_its_concerns() {
    for (case, change, expected) in CASES {
        let mut status = well();
        change(&mut status);
        let concerns = of(&status, 0);
        let titles: Vec<_> = concerns.iter().map(|c| (c.level, &*c.title)).collect();
        assert_eq!(titles, *expected, "{case}");
        let kinds: BTreeMap<_, _> = concerns.iter().map(|c| (&*c.kind, &*c.title)).collect();
        assert_eq!(kinds.len(), concerns.len(), "{case}: the log tells them apart by their kinds");
        for concern in concerns {
            let Concern { detail, remedy, .. } = &concern;
            assert!(detail.ends_with('.') && remedy.ends_with('.'), "{case}: {concern:?}");
            assert!(!detail.contains("  ") && !detail.contains(".."), "{case}: {detail}");
        }
    }
}

#[test]
fn whole_sentences() {
    let mut status = well();
    status.last_delivered = Some(at(200));
    status.errors = vec![error("SignatureDoesNotMatch", 4)];
    status.paused = vec![paused("TopicA", Some(AccessDenied::Key), 1_200)];
    status.spend.budgets = vec![budget(95.0, OnExceed::Refuse)];
    let details: Vec<_> = of(&status, 2).into_iter().map(|concern| concern.detail).collect();
    assert_eq!(
        details,
        [
            "Code SignatureDoesNotMatch, 3 times since the start, last 4 s ago. 1,200 messages of \
             TopicA wait. Callers get 502; with Prefer: respond-async their messages are stored (202).",
            "100.00 CNY of 100.00 CNY; messages over it are refused. It resets in 2 h.",
            "2 calls of the last 15 min ended without a clear answer. The message may have been \
             delivered and billed.",
        ]
    );
}

/// The detail of the only concern of a status.
fn detail(change: impl FnOnce(&mut SidecarStatus)) -> String {
    let mut status = well();
    change(&mut status);
    let [Concern { detail, .. }] = <[Concern; 1]>::try_from(of(&status, 0)).unwrap();
    detail
}

#[test]
fn a_stop_refuses_messages_only_after_accept_for() {
    let stopping = |accepting| detail(|s| (s.draining, s.accepting) = (true, accepting));
    assert!(stopping(true).starts_with("tollgate still accepts messages until drain.accept_for"));
    assert!(stopping(false).starts_with("tollgate refuses new messages (503)"));
}

#[test]
fn unanswered_calls_count_as_long_as_configured() {
    let stall = |max| {
        detail(|s| {
            s.unanswered_max = max;
            s.ceilings[0].unanswered = 100;
        })
    };
    assert!(stall(Duration::from_mins(5)).contains("answered, for 5 min at most"));
    assert!(stall(Duration::from_secs(90)).contains("answered, for 90 s at most"));
}

/// `tollgate status` reads what the sidecar writes.
#[test]
fn the_status_is_read_back() {
    let mut status = well();
    status.errors = vec![error("Throttling.User", 4)];
    status.paused = vec![paused("TopicA", None, 3)];
    status.fleet = Some(fleet(Mode::CutOff));
    status.spend.budgets = vec![budget(95.0, OnExceed::Warn), budget(5.0, OnExceed::Refuse)];
    status.spend.budgets[0].unit = Unit::Messages;
    status.concerns = of(&status, 1);
    let written = serde_json::to_string(&status).unwrap();
    let read: SidecarStatus = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), written);
    assert_eq!(read.concerns, status.concerns);
}
