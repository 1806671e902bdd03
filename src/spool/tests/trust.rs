//! On a real Redis: what a sidecar takes over by its own rules.

use std::fs;

use redis::Commands;
use tokio::task::JoinHandle;

use super::super::{AdoptionRules, HeldCounts, Options, Spool};
use super::shared::{CALM, QUICK, share_in, share_of};
use super::{message, options, until};
use crate::config;
use crate::message::{Message, MessageId};
use crate::redis_client::server::Redis;

/// What a sidecar with these topics adopts, whose instance is the one of the tests' messages.
pub(super) fn allows(topics: &str) -> AdoptionRules {
    let flags = [
        ("upstream.endpoint", "http://127.0.0.1:1"),
        ("upstream.instance_id", "post-cn-1"),
        ("topics.allow", topics),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
    AdoptionRules::of(&config::load(None, [], &flags).unwrap().config)
}

pub(super) fn adopting_by(adopts: AdoptionRules) -> Options {
    Options { adopts, ..options("/nowhere".as_ref()) }
}

/// A sidecar that adopts.
pub(super) struct Peer {
    pub(super) spool: Spool,
    adopting: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.adopting.abort();
    }
}

impl Peer {
    pub(super) async fn start(redis: &Redis, options: Options) -> Self {
        Self::of(share_of(redis, "a", CALM, None, options).await)
    }

    pub(super) fn of(spool: Spool) -> Self {
        let mut adoptions = spool.adoptions().unwrap();
        let adopting = tokio::spawn(async move { while adoptions.next().await.is_some() {} });
        Self { spool, adopting }
    }

    pub(super) fn ids(&self) -> Vec<MessageId> {
        self.spool.list(None, usize::MAX, &mut |_| true).iter().map(|brief| brief.id).collect()
    }

    pub(super) async fn leaves(&self, not_allowed: u64, unverified: u64) {
        let left = HeldCounts { not_allowed, unverified };
        let what = format!("{left:?} are left, not {:?}", self.spool.usage().left);
        until(&what, async || self.spool.usage().left == left).await;
    }

    pub(super) async fn has(&self, ids: &[MessageId]) {
        until(&format!("it has {}", ids.len()), async || self.ids() == ids).await;
    }
}

pub(super) fn ids<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Vec<MessageId> {
    messages.into_iter().map(|message| message.id).collect()
}

/// Keeps messages of these topics in a sidecar that stops in order.
pub(super) async fn left_by(redis: &Redis, options: Options, topics: &[&str]) -> Vec<Message> {
    let owner = share_of(redis, "a", CALM, None, options).await;
    let kept: Vec<_> = topics.iter().map(|topic| message(topic, format!("to {topic}"))).collect();
    for message in &kept {
        owner.keep(message, None).await.unwrap();
    }
    owner.close().await;
    kept
}

/// More than a page of what a peer may not send, before, between and behind what it may.
#[tokio::test]
async fn a_peer_leaves_what_it_may_not_send_for_one_that_may() {
    let redis = Redis::start();
    let mut topics = vec!["Payment"; 450];
    for at in [0, 250, 449] {
        topics[at] = "Alarm/fire";
    }
    let kept = left_by(&redis, options("/nowhere".as_ref()), &topics).await;
    let alarm = |message: &&Message| message.topic.parent() == "Alarm";
    let alarms = ids(kept.iter().filter(alarm));
    let alarmed = Peer::start(&redis, adopting_by(allows("Alarm/*"))).await;
    alarmed.leaves(447, 0).await;
    assert_eq!(alarmed.ids(), alarms);
    // What is left keeps nothing waiting that a sidecar leaves later.
    let later = left_by(&redis, options("/nowhere".as_ref()), &["Payment", "Alarm/x"]).await;
    alarmed.leaves(448, 0).await;
    assert_eq!(alarmed.ids(), [&alarms[..], &[later[1].id]].concat());

    let pays = Peer::start(&redis, adopting_by(allows("Payment"))).await;
    let payments = kept.iter().filter(|message| !alarm(message)).chain(&later[..1]);
    let payments: Vec<_> = payments.collect();
    pays.has(&ids(payments.iter().copied())).await;
    for message in payments.iter().step_by(100) {
        let read = pays.spool.read(message.id).await.unwrap();
        assert_eq!(read.message.payload, message.payload);
    }
    alarmed.leaves(0, 0).await;
    pays.leaves(0, 0).await;
    assert_eq!(alarmed.ids().len(), 4, "each is with one of them");
    // Nothing is left of the sidecars that have left all.
    let owners: i64 = redis.connection().hlen("tollgate:{a}:spool:owners").unwrap();
    assert_eq!(owners, 2);
}

#[tokio::test]
async fn new_rules_hold_for_what_was_left_before() {
    let redis = Redis::start();
    let kept =
        left_by(&redis, options("/nowhere".as_ref()), &["Payment", "Alarm/x", "Other"]).await;
    let peer = Peer::start(&redis, adopting_by(allows("Alarm/*"))).await;
    peer.leaves(2, 0).await;
    peer.spool.adopt_by(allows("Alarm/*, Payment"));
    peer.leaves(1, 0).await;
    assert_eq!(peer.ids(), ids(&kept[..2]));
}

/// Its instance is one that `[upstream]` does not name.
#[tokio::test]
async fn a_message_of_an_instance_that_is_not_named_is_left() {
    let redis = Redis::start();
    let owner = share_of(&redis, "a", CALM, None, options("/nowhere".as_ref())).await;
    let other = Message { instance: "post-cn-2".into(), ..message("Alarm/x", "x") };
    let own = message("Alarm/x", "x");
    owner.keep(&other, None).await.unwrap();
    owner.keep(&own, None).await.unwrap();
    owner.close().await;
    let peer = Peer::start(&redis, adopting_by(allows("Alarm/*"))).await;
    peer.leaves(1, 0).await;
    assert_eq!(peer.ids(), [own.id]);
}

/// An owner whose lease has ended: it stays as it is, as long as it has what is left.
#[tokio::test]
async fn nothing_is_written_where_nothing_is_taken() {
    let redis = Redis::start();
    let silent = share_of(&redis, "a", CALM, None, options("/nowhere".as_ref())).await;
    silent.keep(&message("Payment", "x"), None).await.unwrap();
    silent.settle().await;
    drop(silent);
    let rules = adopting_by(allows("Alarm/*"));
    let peer = Peer::of(share_of(&redis, "a", QUICK, None, rules).await);
    peer.leaves(1, 0).await;
    let epochs: Vec<String> = redis.connection().hvals("tollgate:{a}:spool:owners").unwrap();
    assert!(epochs.len() == 2 && epochs.iter().all(|epoch| epoch != "-"), "{epochs:?}");
}

/// The process before this one in its folder, which had other rules.
#[tokio::test]
async fn a_predecessor_is_a_dead_owner_like_others() {
    let (redis, folder) = (Redis::start(), tempfile::tempdir().unwrap());
    let before = share_in(&redis, "a", CALM, Some(folder.path())).await;
    let [payment, alarm] = ["Payment", "Alarm/x"].map(|topic| message(topic, "x"));
    before.keep(&payment, None).await.unwrap();
    before.keep(&alarm, None).await.unwrap();
    before.settle().await;
    drop(before);
    let is_free = async || fs::File::open(folder.path().join("owner")).unwrap().try_lock().is_ok();
    until("the folder is free", is_free).await;
    let rules = adopting_by(allows("Alarm/*"));
    let spool = share_of(&redis, "a", CALM, Some(folder.path()), rules).await;
    let here: Vec<_> = spool.list(None, 9, &mut |_| true).iter().map(|brief| brief.id).collect();
    assert_eq!(here, [alarm.id], "before it adopts");
    let pays = Peer::start(&redis, adopting_by(allows("Payment"))).await;
    pays.has(&[payment.id]).await;
}
