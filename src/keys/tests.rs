//! Keeping a key fresh, with a scripted source and paused time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use super::*;
use crate::log_limiter::captured::capture;

type Answer = Box<dyn FnMut(usize, Timestamp) -> Result<Key, KeyError> + Send>;

/// Answers its n-th look by a script, and writes down when it was asked.
struct Scripted {
    pace: Pace,
    takes: Duration,
    answer: Answer,
    /// While it answers nothing.
    hangs: Option<std::ops::Range<Duration>>,
    world: World,
    /// Dropped with the source: tells that it went.
    _gone: Option<oneshot::Sender<()>>,
}

/// Time, and what happened when.
#[derive(Clone)]
struct World {
    start: Instant,
    /// How far the clock on the wall was set forward.
    stepped: Arc<Mutex<Duration>>,
    looks: Arc<Mutex<Vec<Duration>>>,
    canary: Canary,
}

impl World {
    fn new() -> Self {
        let (stepped, looks) = (Arc::default(), Arc::default());
        Self { start: Instant::now(), stepped, looks, canary: Canary::NONE }
    }

    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.start.elapsed() + *self.stepped.lock().unwrap()
    }

    fn clock(&self) -> Now {
        let world = self.clone();
        Arc::new(move || world.now())
    }

    fn looks(&self) -> Vec<Duration> {
        self.looks.lock().unwrap().clone()
    }

    fn gaps(&self) -> Vec<Duration> {
        self.looks().windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect()
    }

    fn keys(
        &self,
        pace: Pace,
        answer: impl FnMut(usize, Timestamp) -> Result<Key, KeyError> + Send + 'static,
    ) -> Keys {
        self.keys_of(self.source(pace, answer), CancellationToken::new())
    }

    fn keys_of(&self, source: Scripted, stop: CancellationToken) -> Keys {
        Keys::with_source(source, self.canary, self.clock(), fastrand::Rng::with_seed(7), stop)
    }

    fn source(
        &self,
        pace: Pace,
        answer: impl FnMut(usize, Timestamp) -> Result<Key, KeyError> + Send + 'static,
    ) -> Scripted {
        let takes = Duration::from_millis(100);
        Scripted {
            pace,
            takes,
            answer: Box::new(answer),
            hangs: None,
            world: self.clone(),
            _gone: None,
        }
    }
}

impl Source for Scripted {
    fn as_str(&self) -> &'static str {
        "scripted"
    }

    fn place(&self) -> String {
        "the script".to_owned()
    }

    fn pace(&self) -> Pace {
        self.pace
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        let nth = {
            let mut looks = self.world.looks.lock().unwrap();
            looks.push(self.world.start.elapsed());
            looks.len()
        };
        sleep(self.takes).await;
        if self.hangs.as_ref().is_some_and(|hangs| hangs.contains(&self.world.start.elapsed())) {
            std::future::pending::<()>().await;
        }
        (self.answer)(nth, self.world.now())
    }
}

const POLL: Pace = Pace::Every(Duration::from_secs(5));

fn key(n: usize, expires: Option<Timestamp>) -> Key {
    let secret = SecretString::from(format!("hush{n}"));
    let token = Some(SecretString::from(format!("hushtoken{n}")));
    Key::new(format!("LTAI{n:04}"), secret, token, expires).unwrap()
}

fn trouble(words: &str) -> KeyError {
    KeyError::Server { origin: "http://keys".to_owned(), why: words.to_owned() }
}

// === Renewal ===

#[tokio::test(start_paused = true)]
async fn a_key_is_renewed_before_it_ends_without_a_gap() {
    for (life, earliest, latest) in [
        (Duration::from_hours(6), Duration::from_mins(340), Duration::from_mins(345)),
        (Duration::from_mins(10), Duration::from_mins(4), Duration::from_mins(5)),
    ] {
        let world = World::new();
        let keys = world.keys(Pace::BeforeExpiry, move |n, now| Ok(key(n, Some(now + life))));
        keys.loaded().await;
        let mut old = keys.current().unwrap();
        for n in 2..10 {
            keys.changed_from(&old).await;
            assert!(world.now() < old.expires().unwrap(), "the old one still lives");
            old = keys.current().unwrap();
            assert_eq!(old.id(), format!("LTAI{n:04}"));
        }
        let slack = Duration::from_millis(150);
        for gap in world.gaps() {
            assert!(gap >= earliest && gap <= latest + slack, "{gap:?} of {life:?}");
        }
        assert_eq!(keys.status().reloads_ok, 9);
        assert_eq!(keys.status().expires_at, old.expires());
    }
}

/// A key that ends at the edge of time is taken, and is not looked for again before it is refused.
#[tokio::test(start_paused = true)]
async fn a_key_that_never_ends() {
    for end in [Timestamp::MAX, "9999-12-30T00:00:00Z".parse().unwrap()] {
        let world = World::new();
        let keys = world.keys(Pace::BeforeExpiry, move |n, _| Ok(key(n, Some(end))));
        keys.loaded().await;
        assert_eq!(keys.current().unwrap().expires(), Some(end));
        sleep(Duration::from_hours(24 * 365)).await;
        assert_eq!((world.looks().len(), keys.status().expires_at), (1, Some(end)));
        assert!(keys.refresh(&keys.current().unwrap()).await);
    }
}

#[tokio::test(start_paused = true)]
async fn failing_renewals_keep_the_key_until_it_ends_and_no_longer() {
    let world = World::new();
    let life = Duration::from_hours(1);
    let keys = world.keys(Pace::BeforeExpiry, move |n, now| match n {
        1 => Ok(key(1, Some(now + life))),
        // The server is away for half an hour.
        _ if now < Timestamp::UNIX_EPOCH + Duration::from_mins(75) => Err(trouble("down")),
        _ => Ok(key(n, Some(now + life))),
    });
    assert_eq!(keys.current().unwrap_err(), KeyError::NotLoaded);
    keys.loaded().await;
    let first = keys.current().unwrap();
    let end = first.expires().unwrap();

    while world.now() < end {
        assert!(keys.current().is_ok_and(|key| key.same_as(&first)));
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(keys.current().unwrap_err(), KeyError::Expired(end));
    let status = keys.status();
    assert_eq!(status.last_error.as_deref(), Some("http://keys: down"));
    assert_eq!((status.source, status.reloads_ok), ("scripted", 1));
    assert!(status.reloads_failed >= 30, "tried on: {status:?}");

    keys.changed_from(&first).await;
    assert!(world.now() < Timestamp::UNIX_EPOCH + Duration::from_mins(76));
    assert!(keys.current().is_ok());
    assert_eq!(keys.status().last_error, None);
    let tries = &world.gaps()[1..];
    let cap = Duration::from_millis(30_200);
    assert!(tries.iter().all(|gap| *gap >= Duration::from_secs(1) && *gap <= cap), "{tries:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_gives_the_same_dying_key_again_and_again_is_not_hammered() {
    let world = World::new();
    let end = Timestamp::UNIX_EPOCH + Duration::from_mins(15);
    let keys = world.keys(Pace::BeforeExpiry, move |_, _| Ok(key(1, Some(end))));
    keys.loaded().await;
    sleep(Duration::from_mins(20)).await;

    assert_eq!(keys.current().unwrap_err(), KeyError::Expired(end));
    assert!(world.gaps().iter().all(|gap| *gap >= Duration::from_secs(1)));
    let before_the_end = world.looks().iter().filter(|at| at.as_secs() < 15 * 60).count();
    assert!((5..20).contains(&before_the_end), "{:?}", world.looks());
    let status = keys.status();
    assert_eq!(status.reloads_ok, 1, "the same key is no reload");
    assert!(status.last_error.unwrap().contains("expired at"), "an expired answer is a failure");
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_forward_is_noticed_within_a_minute() {
    let world = World::new();
    let life = Duration::from_hours(12);
    let keys = world.keys(Pace::BeforeExpiry, move |n, now| Ok(key(n, Some(now + life))));
    keys.loaded().await;
    let first = keys.current().unwrap();
    *world.stepped.lock().unwrap() = Duration::from_hours(13);
    assert!(keys.current().is_err());
    timeout(Duration::from_secs(61), keys.changed_from(&first)).await.unwrap();
    assert!(keys.current().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_polled_source_keeps_its_beat_and_its_last_good_key() {
    let world = World::new();
    let keys = world.keys(POLL, |n, _| match n {
        1..=3 => Ok(key(1, None)),
        4..=5 => Err(trouble("half written")),
        _ => Ok(key(2, None)),
    });
    keys.loaded().await;
    let first = keys.current().unwrap();
    keys.changed_from(&first).await;
    assert_eq!(world.looks().len(), 6);
    assert!(world.gaps().iter().all(|gap| (5_100..5_110).contains(&gap.as_millis())));
    let status = keys.status();
    assert_eq!((status.reloads_ok, status.reloads_failed), (2, 2));
    assert_eq!(status.last_error, None);
    assert_eq!(status.loaded_at, Some(world.now()));
    assert_eq!(status.id.as_deref(), Some("****0002"));
}

// === Refresh ===

#[tokio::test(start_paused = true)]
async fn a_thousand_refused_callers_share_one_look() {
    for (brings_another, answer) in [(true, 2), (false, 1)] {
        let world = World::new();
        let keys = world
            .keys(Pace::BeforeExpiry, move |n, _| Ok(key(if n == 1 { 1 } else { answer }, None)));
        keys.loaded().await;
        let refused = keys.current().unwrap();
        let mut callers = JoinSet::new();
        for _ in 0..1_000 {
            let (keys, refused) = (keys.clone(), Arc::clone(&refused));
            callers.spawn(async move { keys.refresh(&refused).await });
        }
        let answers = callers.join_all().await;
        assert!(answers.iter().all(|answer| *answer == brings_another));
        sleep(Duration::from_mins(1)).await;
        assert_eq!(world.looks().len(), 2, "the first one, and one for all of them");
    }
}

#[tokio::test(start_paused = true)]
async fn looks_that_are_asked_for_are_a_second_apart() {
    let world = World::new();
    let keys = world.keys(Pace::BeforeExpiry, |n, _| match n {
        1 => Ok(key(1, None)),
        _ => Err(trouble("down")),
    });
    keys.loaded().await;
    let refused = keys.current().unwrap();
    for _ in 0..10 {
        assert!(!keys.refresh(&refused).await);
    }
    let gaps = world.gaps();
    assert!(gaps.len() >= 10);
    assert!(gaps.iter().all(|gap| gap.as_millis() >= 1_100), "a look takes 100 ms: {gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn who_holds_an_old_key_is_sent_on_at_once() {
    let world = World::new();
    let keys = world.keys(Pace::BeforeExpiry, |_, _| Ok(key(1, None)));
    keys.loaded().await;
    let before = Instant::now();
    assert!(keys.refresh(&key(9, None)).await);
    assert_eq!(before.elapsed(), Duration::ZERO);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(world.looks().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_look_under_way_answers_who_asks_meanwhile() {
    let world = World::new();
    let keys = world.keys(POLL, |n, _| Ok(key(n.min(2), None)));
    keys.loaded().await;
    let refused = keys.current().unwrap();
    // Into the middle of the second look, which lasts 100 ms.
    sleep(Duration::from_millis(5_050)).await;
    assert_eq!(world.looks().len(), 2);
    let before = Instant::now();
    assert!(keys.refresh(&refused).await);
    assert!(before.elapsed() <= Duration::from_millis(60));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.looks().len(), 2, "nobody waits for another one");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_breaks_nothing() {
    let world = World::new();
    let keys = world.keys(Pace::BeforeExpiry, |n, _| Ok(key(n, None)));
    keys.loaded().await;
    let refused = keys.current().unwrap();
    assert!(timeout(Duration::from_millis(10), keys.refresh(&refused)).await.is_err());
    keys.changed_from(&refused).await;
    assert!(keys.refresh(&refused).await);
    assert_eq!(world.looks().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_expired_key_is_no_other_key() {
    let world = World::new();
    let end = Timestamp::UNIX_EPOCH + Duration::from_secs(30);
    let keys = world.keys(POLL, move |n, _| match n {
        1 => Ok(key(1, Some(end))),
        _ => Err(trouble("down")),
    });
    keys.loaded().await;
    assert!(keys.refresh(&key(9, None)).await);
    sleep(Duration::from_secs(31)).await;
    assert!(!keys.refresh(&key(9, None)).await);
}

// === Ends ===

#[tokio::test(start_paused = true)]
async fn a_stopped_keeper_lets_its_source_go_and_nobody_wait() {
    let world = World::new();
    let stop = CancellationToken::new();
    let (gone, left) = oneshot::channel();
    let source = Scripted { _gone: Some(gone), ..world.source(POLL, |_, _| Ok(key(1, None))) };
    let keys = world.keys_of(source, stop.clone());
    keys.loaded().await;
    stop.cancel();
    assert!(left.await.is_err(), "the sender went with the source");
    let key = keys.current().unwrap();
    assert!(!keys.refresh(&key).await);
    assert_eq!(world.looks().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_without_handles_ends() {
    let world = World::new();
    let (gone, left) = oneshot::channel();
    let source = Scripted { _gone: Some(gone), ..world.source(POLL, |_, _| Ok(key(1, None))) };
    let keys = world.keys_of(source, CancellationToken::new());
    let other = keys.clone();
    keys.loaded().await;
    drop(keys);
    sleep(Duration::from_secs(30)).await;
    assert!(world.looks().len() >= 5, "one handle is enough");
    drop(other);
    assert!(timeout(Duration::from_secs(10), left).await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_fixed_key_is_there_and_stays() {
    let keys = Keys::fixed(key(1, None));
    keys.loaded().await;
    let current = keys.current().unwrap();
    assert_eq!(current.id(), "LTAI0001");
    assert!(!keys.refresh(&current).await);
    assert!(keys.refresh(&key(2, None)).await);
    let status = keys.status();
    assert_eq!((status.source, status.reloads_ok, status.reloads_failed), ("env", 1, 0));
}

// === What is shown ===

#[tokio::test(start_paused = true)]
async fn each_trouble_is_logged_once_and_no_secret_ever() {
    let (log, _guard) = capture(Level::TRACE);
    let world = World::new();
    let keys = world.keys(POLL, |n, _| match n {
        1 | 21.. => Ok(key(1, None)),
        2..=10 => Err(trouble("first trouble")),
        _ => Err(trouble("second trouble")),
    });
    sleep(Duration::from_mins(3)).await;
    assert_eq!(keys.status().reloads_failed, 19);

    let log = log.text();
    for once in ["access key loaded", "first trouble", "second trouble", "can be read again"] {
        assert_eq!(log.matches(once).count(), 1, "{once} in {log}");
    }
    let shown = format!("{keys:#?} {:#?} {log}", keys.current().unwrap());
    assert!(shown.contains("****0001"));
    assert!(!shown.contains("hush") && !shown.contains("LTAI0001"), "{shown}");
}

// === Keys that live for seconds ===

/// Renewed well before their end, and a source that is down for most of a life leaves no gap.
#[tokio::test(start_paused = true)]
async fn keys_of_twenty_seconds_outlast_a_source_that_is_down_for_fifteen() {
    for down_from in 30..50 {
        let world = World::new();
        let life = Duration::from_secs(20);
        let from = Timestamp::UNIX_EPOCH + Duration::from_secs(down_from);
        let down = from..from + Duration::from_secs(15);
        let keys = world.keys(Pace::BeforeExpiry, move |n, now| {
            if down.contains(&now) { Err(trouble("down")) } else { Ok(key(n, Some(now + life))) }
        });
        keys.loaded().await;
        while world.start.elapsed() < Duration::from_mins(2) {
            assert!(keys.current().is_ok(), "{down_from}: {:?}", keys.status());
            sleep(Duration::from_millis(100)).await;
        }
        assert!(keys.status().reloads_failed >= 5, "{:?}", keys.status());
        assert!(world.looks().len() < 130, "at most one a second");
    }
}

/// A source that hangs is given up in time for others looks to follow.
#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_given_up_while_the_key_lives() {
    let world = World::new();
    let life = Duration::from_secs(20);
    let mut source = world.source(Pace::BeforeExpiry, move |n, now| Ok(key(n, Some(now + life))));
    source.hangs = Some(Duration::from_secs(10)..Duration::from_secs(25));
    let keys = world.keys_of(source, CancellationToken::new());
    keys.loaded().await;
    while world.start.elapsed() < Duration::from_mins(1) {
        assert!(keys.current().is_ok(), "{:?}", keys.status());
        sleep(Duration::from_millis(100)).await;
    }
    let status = keys.status();
    assert!(status.reloads_failed >= 3 && status.last_error.is_none(), "{status:?}");
}
