//! A new key on a share of calls, in paused time.

use std::time::Duration;

use secrecy::SecretString;
use tokio::time::advance;
use tracing::Level;

use super::*;
use crate::log_limiter::captured::capture;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const CANARY: Canary = Canary { share: 0.01, period: Duration::from_secs(30) };

fn key(n: usize) -> Key {
    Key::new(format!("LTAI{n:04}"), SecretString::from(format!("hush{n}")), None, None).unwrap()
}

/// Keys of which the provider takes those that `works` names; who makes a call again with another key
/// until one passes, as delivery does.
struct Caller {
    rotation: Rotation,
    /// Calls by key id, and how many of them were refused.
    calls: std::collections::BTreeMap<String, usize>,
}

impl Caller {
    fn new() -> Self {
        let rotation = Rotation::new(CANARY);
        assert_eq!(rotation.offer(key(1), NOW), Offered::TakenUp);
        Self { rotation, calls: std::collections::BTreeMap::new() }
    }

    /// Whether a message got through, within the calls that are made for one.
    fn publish(&mut self, works: &[&str], why: AccessDenied) -> bool {
        self.publish_by(|key| works.contains(&key).then_some(()).ok_or(why))
    }

    /// The same; the provider takes a key or refuses it.
    fn publish_by(&mut self, mut provider: impl FnMut(&str) -> Result<(), AccessDenied>) -> bool {
        let id = MessageId::new();
        for _ in 0..3 {
            let Ok(key) = self.rotation.choose(id, NOW) else { return false };
            *self.calls.entry(key.id().to_owned()).or_default() += 1;
            match provider(key.id()) {
                Ok(()) => {
                    self.rotation.worked(id, &key);
                    return true;
                }
                Err(why) if self.rotation.refused(id, &key, why, NOW) == NextSignature::Same => {
                    return false;
                }
                Err(_) => {}
            }
        }
        false
    }

    fn in_use(&self) -> String {
        self.rotation.current().unwrap().id().to_owned()
    }

    fn publish_many(&mut self, n: usize, works: &[&str]) {
        for nth in 0..n {
            assert!(self.publish(works, AccessDenied::Key), "message {nth}: {:?}", self.calls);
        }
    }

    fn calls(&self, id: &str) -> usize {
        self.calls.get(id).copied().unwrap_or_default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_tried_on_a_share_and_then_used_for_all() {
    let mut caller = Caller::new();
    caller.publish_many(10, &["LTAI0001"]);
    assert_eq!(caller.rotation.offer(key(2), NOW), Offered::OnTrial);
    assert_eq!(caller.rotation.offer(key(2), NOW), Offered::Known);
    caller.publish_many(1_000, &["LTAI0001", "LTAI0002"]);
    assert_eq!(caller.calls("LTAI0002"), 10);
    advance(CANARY.period).await;
    caller.publish_many(100, &["LTAI0001", "LTAI0002"]);
    assert_eq!(caller.calls("LTAI0002"), 110);
    let status = caller.rotation.status();
    assert_eq!((status.id.as_deref(), status.taken_up), (Some("****0002"), 2));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_hardly_called_with_is_tried_until_it_has_worked() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    advance(CANARY.period * 100).await;
    assert_eq!(caller.rotation.offer(key(2), NOW), Offered::Known);
    assert_eq!(caller.rotation.current().unwrap().id(), "LTAI0001");
    caller.publish_many(1, &["LTAI0001", "LTAI0002"]);
    assert_eq!(caller.rotation.current().unwrap().id(), "LTAI0002");
}

#[tokio::test(start_paused = true)]
async fn a_broken_new_key_costs_one_call_one_line_and_no_message() {
    let (log, _guard) = capture(Level::INFO);
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    for _ in 0..5 {
        caller.publish_many(1_000, &["LTAI0001"]);
        advance(CANARY.period).await;
        assert_eq!(caller.rotation.offer(key(2), NOW), Offered::Known, "it is not tried again");
    }
    assert_eq!(caller.calls("LTAI0002"), 1);
    let status = caller.rotation.status();
    assert_eq!((status.rejections, status.rejected.as_deref()), (1, Some("****0002")));
    let log = log.text();
    assert_eq!(log.matches("refuses the new access key").count(), 1, "{log}");
    assert!(!log.contains("hush"), "{log}");
    // The next one has its own trial.
    assert_eq!(caller.rotation.offer(key(3), NOW), Offered::OnTrial);
    assert_eq!(caller.rotation.status().rejected, None);
}

#[tokio::test(start_paused = true)]
async fn an_old_key_that_is_revoked_gives_way_at_once() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    caller.publish_many(500, &["LTAI0001", "LTAI0002"]);
    caller.publish_many(500, &["LTAI0002"]);
    assert!(caller.calls("LTAI0001") <= 500);
    assert_eq!(caller.rotation.status().id.as_deref(), Some("****0002"));
}

/// A new key may take seconds until the provider knows it.
#[tokio::test(start_paused = true)]
async fn a_key_that_was_refused_is_used_when_no_other_works() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    caller.publish_many(10, &["LTAI0001"]);
    assert_eq!(caller.rotation.status().rejections, 1);
    caller.publish_many(100, &["LTAI0002"]);
    assert_eq!(caller.rotation.status().id.as_deref(), Some("****0002"));
    // With none left, the message is refused, and the source is asked.
    assert!(!caller.publish(&[], AccessDenied::Key));
    let refused = caller.rotation.refused_key().unwrap();
    assert_eq!(refused.id(), "LTAI0002");
    assert_eq!(caller.rotation.offer(key(2), NOW), Offered::Known);
    assert!(!caller.rotation.has_other_than(&refused, NOW));
    // What the source has now is used for all calls, and instead of it once its trial is over.
    assert_eq!(caller.rotation.offer(key(3), NOW), Offered::OnTrial);
    assert!(caller.rotation.has_other_than(&refused, NOW));
    caller.publish_many(100, &["LTAI0003"]);
    assert_eq!((caller.calls("LTAI0003"), &*caller.in_use()), (100, "LTAI0002"));
    advance(CANARY.period).await;
    caller.publish_many(1, &["LTAI0003"]);
    assert_eq!(caller.in_use(), "LTAI0003");
    assert!(caller.rotation.refused_key().is_none());
}

/// One odd refusal of a key that works drops it for no other that does not, wherever that one stands.
#[tokio::test(start_paused = true)]
async fn one_refusal_of_a_good_key_does_not_give_way_to_a_bad_one() {
    let once = |caller: &mut Caller| {
        let mut refusals = 1;
        caller.publish_by(|key| match key {
            "LTAI0001" if refusals == 0 => Ok(()),
            "LTAI0001" => {
                refusals -= 1;
                Err(AccessDenied::Key)
            }
            _ => Err(AccessDenied::Key),
        })
    };
    // A new one that was rejected before.
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    caller.publish_many(10, &["LTAI0001"]);
    assert_eq!(caller.rotation.status().rejections, 1);
    assert!(once(&mut caller), "{:?}", caller.calls);
    caller.publish_many(1_000, &["LTAI0001"]);
    assert_eq!((caller.in_use().as_str(), caller.calls("LTAI0002")), ("LTAI0001", 2));
    // One on trial, of which nothing is known yet.
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    assert!(!once(&mut caller), "neither key has worked for it");
    caller.publish_many(1_000, &["LTAI0001"]);
    assert_eq!(caller.in_use(), "LTAI0001");
    // One that the source has only afterwards.
    let mut caller = Caller::new();
    assert!(!once(&mut caller), "there is no other");
    caller.rotation.offer(key(2), NOW);
    caller.publish_many(1_000, &["LTAI0001"]);
    let status = caller.rotation.status();
    assert_eq!((status.id.as_deref(), status.rejections), (Some("****0001"), 1));
}

/// Neither key works: two calls find that out for each message, and the new one that does is found.
#[tokio::test(start_paused = true)]
async fn while_both_keys_are_refused_the_source_is_asked() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    for _ in 0..100 {
        assert!(!caller.publish(&[], AccessDenied::Key));
    }
    let refused = caller.rotation.refused_key().unwrap();
    assert!(!caller.rotation.has_other_than(&refused, NOW), "so a look at the source is made");
    // Nearly: until it is known that the old one is refused, its retry has the new one and then it again.
    assert!(caller.calls.values().sum::<usize>() <= 201, "{:?}", caller.calls);
    caller.rotation.offer(key(3), NOW);
    caller.publish_many(100, &["LTAI0003"]);
    assert_eq!(caller.calls("LTAI0003"), 100);
}

/// A key that was rejected is no other one to go on with, once the one in use is dead, too.
#[tokio::test(start_paused = true)]
async fn once_a_rejected_key_and_the_one_in_use_are_dead_the_source_is_asked() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    caller.publish_many(10, &["LTAI0001"]);
    assert_eq!(caller.rotation.status().rejections, 1);
    assert!(caller.rotation.refused_key().is_none());
    for _ in 0..2 {
        assert!(!caller.publish(&[], AccessDenied::Key));
        let refused = caller.rotation.refused_key().unwrap();
        assert!(!caller.rotation.has_other_than(&refused, NOW), "so a look at the source is made");
    }
    caller.rotation.offer(key(3), NOW);
    caller.publish_many(100, &["LTAI0003"]);
    assert_eq!(caller.calls("LTAI0003"), 100);
}

/// Whether it has worked for others before or not: what decides is that the old key may do what it may not.
#[tokio::test(start_paused = true)]
async fn a_new_key_that_may_less_than_the_old_one_is_refused() {
    for worked_before in [0, 1, 500] {
        let mut caller = Caller::new();
        caller.rotation.offer(key(2), NOW);
        caller.publish_many(worked_before, &["LTAI0001", "LTAI0002"]);
        while caller.rotation.status().rejections == 0 {
            assert!(caller.publish(&["LTAI0001"], AccessDenied::Permission), "no message is lost");
        }
        assert!(caller.calls("LTAI0002") <= worked_before.div_ceil(100) + 1);
        advance(CANARY.period * 2).await;
        caller.publish_many(1_000, &["LTAI0001"]);
        assert_eq!(caller.in_use(), "LTAI0001");
    }
}

/// A topic that is forbidden to both, or a message that is refused with both, says nothing of the new key.
#[tokio::test(start_paused = true)]
async fn what_is_refused_with_either_key_is_not_the_new_ones_fault() {
    for worked_before in [0, 1] {
        let mut caller = Caller::new();
        caller.rotation.offer(key(2), NOW);
        caller.publish_many(worked_before, &["LTAI0001", "LTAI0002"]);
        for _ in worked_before..1_000 {
            assert!(!caller.publish(&[], AccessDenied::Permission));
        }
        assert_eq!(caller.calls("LTAI0002"), 10, "it is on trial as before");
        let status = caller.rotation.status();
        assert_eq!((status.rejections, status.id.as_deref()), (0, Some("****0001")));
        advance(CANARY.period).await;
        caller.publish_many(200, &["LTAI0001", "LTAI0002"]);
        assert_eq!(caller.in_use(), "LTAI0002");
    }
}

/// A key that the provider does not know is refused before it is asked what it may do.
#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_refused_on_a_forbidden_topic_too() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    assert!(!caller.publish_by(|key| match key {
        "LTAI0001" => Err(AccessDenied::Permission),
        _ => Err(AccessDenied::Key),
    }));
    assert_eq!(caller.rotation.status().rejections, 1);
}

/// Until the retry has ended, whatever else comes, it is made with the key that did not refuse.
#[tokio::test(start_paused = true)]
async fn a_retry_is_made_with_the_other_key() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    let id = MessageId::new();
    let tried = caller.rotation.choose(id, NOW).unwrap();
    assert_eq!(tried.id(), "LTAI0002");
    let next = caller.rotation.refused(id, &tried, AccessDenied::Permission, NOW);
    assert_eq!(next, NextSignature::OtherKey);
    caller.publish_many(500, &["LTAI0001", "LTAI0002"]);
    // Nor does a call of which nothing is learnt change that, or the time that a trial takes.
    advance(CANARY.period).await;
    for _ in 0..300 {
        assert_eq!(caller.rotation.choose(id, NOW).unwrap().id(), "LTAI0001");
    }
    // But a message may end without another call.
    advance(CANARY.period).await;
    caller.publish_many(1, &["LTAI0001", "LTAI0002"]);
    assert_eq!(caller.in_use(), "LTAI0002");
    caller.rotation.offer(key(3), NOW);
    let tried = Arc::new(key(3));
    // What is remembered is bounded.
    for _ in 0..MOST_REFUSALS + 10 {
        let id = MessageId::new();
        caller.rotation.refused(id, &tried, AccessDenied::Permission, NOW);
    }
    assert_eq!(caller.rotation.keys().refusals.len(), MOST_REFUSALS);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_goes_back_ends_the_trial() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    assert_eq!(caller.rotation.offer(key(1), NOW), Offered::Known);
    caller.publish_many(1_000, &["LTAI0001"]);
    assert_eq!(caller.calls("LTAI0002"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_ends_is_used_at_once() {
    let caller = Caller::new();
    let ends = NOW + Duration::from_hours(1);
    let ending = Key::new("STS.0000001", SecretString::from("s"), None, Some(ends)).unwrap();
    assert_eq!(caller.rotation.offer(ending, NOW), Offered::TakenUp);
    assert_eq!(caller.rotation.choose(MessageId::new(), NOW).unwrap().id(), "STS.0000001");
    assert!(caller.rotation.choose(MessageId::new(), ends).is_err());
    assert_eq!(
        caller.rotation.offer(key(2), ends),
        Offered::TakenUp,
        "an ended key needs no trial"
    );
}
