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
        for _ in 0..3 {
            let Ok(key) = self.rotation.choose(NOW) else { return false };
            *self.calls.entry(key.id().to_owned()).or_default() += 1;
            if works.contains(&key.id()) {
                self.rotation.worked(&key);
                return true;
            }
            if self.rotation.refused(&key, why, NOW) == NextSignature::Same {
                return false;
            }
        }
        false
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
    assert_eq!(caller.rotation.refused_key().unwrap().id(), "LTAI0002");
    assert_eq!(caller.rotation.offer(key(2), NOW), Offered::Known);
    assert_eq!(caller.rotation.offer(key(3), NOW), Offered::TakenUp, "there is nothing to keep");
    assert!(caller.rotation.refused_key().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_new_key_without_permission_is_refused_unless_it_has_worked() {
    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    assert!(caller.publish(&["LTAI0001"], AccessDenied::Permission));
    assert_eq!(caller.rotation.status().rejections, 1);

    let mut caller = Caller::new();
    caller.rotation.offer(key(2), NOW);
    caller.publish_many(1, &["LTAI0001", "LTAI0002"]);
    for _ in 0..1_000 {
        // One topic is forbidden to both.
        caller.publish(&[], AccessDenied::Permission);
    }
    let status = caller.rotation.status();
    assert_eq!((status.rejections, status.id.as_deref()), (0, Some("****0001")));
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
    assert_eq!(caller.rotation.choose(NOW).unwrap().id(), "STS.0000001");
    assert!(caller.rotation.choose(ends).is_err());
    assert_eq!(
        caller.rotation.offer(key(2), ends),
        Offered::TakenUp,
        "an ended key needs no trial"
    );
}
