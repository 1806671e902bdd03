//! The seam between where keys come from and keeping them: a source fetches once, its pace says
//! when to fetch again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::error::KeyError;
use super::key::Key;
use crate::backoff::Backoff;

/// Somewhere a key comes from.
pub trait Source: Send + 'static {
    /// Its word in the configuration, metrics and pages.
    fn as_str(&self) -> &'static str;

    /// The path or address that it looks at, without secrets.
    fn place(&self) -> String;

    /// When to look again.
    fn pace(&self) -> Pace;

    /// Looks once. Must end by itself: the next look waits for it. Errors repeat no secret.
    fn load(&mut self) -> impl Future<Output = Result<Key, KeyError>> + Send;
}

/// When to look at a source again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Looking is cheap and the source doesn't say when it changes.
    Every(Duration),
    /// Keys say when they end; one that doesn't is looked for again only when it was refused.
    BeforeExpiry,
}

/// The next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    In(Duration),
    /// Of the clock on the wall, as expiries are: it may be set while we wait.
    At(Timestamp),
    OnlyWhenAsked,
}

/// The shortest way from one look to the next, where keys are fetched from others.
pub(super) const MIN_GAP: Duration = Duration::from_secs(1);
/// A poll of zero would spin.
const MIN_POLL: Duration = Duration::from_millis(50);

/// A key of about an hour or more is renewed this long before it ends, as the provider's SDKs do.
const LEAD: Duration = Duration::from_mins(15);
/// … and up to this much earlier, so that a fleet started at once doesn't renew at once.
const LEAD_JITTER: Duration = Duration::from_mins(5);
/// What a key of an hour has left when its answer has come, with a server that gives out one that it has had for
/// some minutes.
const SHORT_LIFE: Duration = Duration::from_mins(50);
/// A key that lives no longer than this, as the provider gives none, is renewed at a tenth of its life, so
/// that it outlasts a failure of its source for most of it.
const SHORTEST_LIFE: Duration = Duration::from_mins(1);
/// While a key still lives, tries to renew it are no further apart than this part of what is left of it.
const TRIES_OF_REST: u32 = 8;

/// Full jitter, so that a fleet does not ask as one when its source works again.
const BACKOFF: Backoff = Backoff::exponential(Duration::from_secs(2), Duration::from_secs(30));

impl Pace {
    /// `taken_up`: when the key was first seen.
    pub(super) fn after_success(
        self,
        expires: Option<Timestamp>,
        taken_up: Timestamp,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> Due {
        match (self, expires) {
            (Self::Every(poll), _) => Due::In(poll.max(MIN_POLL)),
            (Self::BeforeExpiry, None) => Due::OnlyWhenAsked,
            (Self::BeforeExpiry, Some(expires)) => {
                let life = Duration::try_from(expires.duration_since(now)).unwrap_or_default();
                let wait = if life >= SHORT_LIFE {
                    life.saturating_sub(LEAD + LEAD_JITTER.mul_f64(rng.f64()))
                } else {
                    let whole = Duration::try_from(expires.duration_since(taken_up));
                    let whole = whole.unwrap_or_default();
                    let part = if whole > SHORTEST_LIFE { life / 2 } else { whole / 10 };
                    part.mul_f64(0.8 + 0.2 * rng.f64())
                };
                let wait = SignedDuration::try_from(wait.max(MIN_GAP)).unwrap_or_default();
                Due::At(now.saturating_add(wait).unwrap_or(expires))
            }
        }
    }

    /// `left`: how long the key that is in use still lives, if it ends.
    pub(super) fn after_failure(
        self,
        failures: u32,
        left: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) -> Due {
        let most = left.map_or(Duration::MAX, |left| left / TRIES_OF_REST);
        match self {
            Self::Every(poll) => Due::In(poll.max(MIN_POLL)),
            Self::BeforeExpiry => {
                Due::In(BACKOFF.after(failures, rng.f64()).min(most).max(MIN_GAP))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(life: Duration, rng: &mut fastrand::Rng) -> Duration {
        let now = Timestamp::UNIX_EPOCH;
        let Due::At(at) = Pace::BeforeExpiry.after_success(Some(now + life), now, now, rng) else {
            panic!("a key that ends is renewed by the clock")
        };
        Duration::try_from(at.duration_since(now)).unwrap()
    }

    #[test]
    fn a_long_life_is_renewed_a_quarter_of_an_hour_before_its_end_or_a_little_earlier() {
        let mut rng = fastrand::Rng::with_seed(1);
        // The answer with a key of an hour has been on its way for some time.
        for seconds in [3_600, 3_599, 3_590, 6 * 3_600, 12 * 3_600] {
            let life = Duration::from_secs(seconds);
            let waits: Vec<_> = (0..200).map(|_| wait_for(life, &mut rng)).collect();
            assert!(
                waits
                    .iter()
                    .all(|wait| (LEAD..=LEAD + LEAD_JITTER).contains(&life.saturating_sub(*wait)))
            );
            assert!(waits.iter().min() < waits.iter().max(), "jitter spreads them");
        }
    }

    #[test]
    fn a_short_life_is_renewed_early_and_never_within_a_second() {
        let mut rng = fastrand::Rng::with_seed(2);
        for (seconds, part) in [(2_999, 2), (900, 2), (61, 2), (60, 10), (20, 10)] {
            let life = Duration::from_secs(seconds);
            for _ in 0..200 {
                let (wait, most) = (wait_for(life, &mut rng), life / part);
                assert!(wait <= most && wait >= most.mul_f64(0.79), "{wait:?} of {life:?}");
            }
        }
        assert_eq!(wait_for(Duration::from_millis(10), &mut rng), MIN_GAP);
        assert_eq!(wait_for(Duration::ZERO, &mut rng), MIN_GAP);
    }

    #[test]
    fn failures_double_the_wait_up_to_its_cap_with_jitter() {
        let mut rng = fastrand::Rng::with_seed(3);
        for (failures, ceiling) in [(1, 2), (2, 4), (3, 8), (4, 16), (5, 30), (40, 30)] {
            let waits: Vec<_> = (0..500)
                .map(|_| match Pace::BeforeExpiry.after_failure(failures, None, &mut rng) {
                    Due::In(wait) => wait,
                    other => panic!("{other:?}"),
                })
                .collect();
            let ceiling = Duration::from_secs(ceiling);
            assert!(waits.iter().all(|wait| (MIN_GAP..=ceiling).contains(wait)));
            assert!(waits.iter().any(|wait| *wait > ceiling.mul_f64(0.9)));
            assert!(waits.iter().any(|wait| *wait < ceiling.mul_f64(0.6)));
        }
    }

    /// However often it has failed, it tries again while the key lives.
    #[test]
    fn a_dying_key_is_tried_for_more_often() {
        let mut rng = fastrand::Rng::with_seed(5);
        for (left, most) in [(160, 20), (16, 2), (8, 1), (1, 1), (0, 1)] {
            let left = Some(Duration::from_secs(left));
            let waits = (0..200).map(|_| Pace::BeforeExpiry.after_failure(40, left, &mut rng));
            let most = Duration::from_secs(most);
            let fits = |due| matches!(due, Due::In(wait) if (MIN_GAP..=most).contains(&wait));
            assert!(waits.into_iter().all(fits), "{left:?}");
        }
    }

    #[test]
    fn a_poll_keeps_its_beat_whatever_it_finds() {
        let mut rng = fastrand::Rng::with_seed(4);
        let pace = Pace::Every(Duration::from_secs(5));
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(pace.after_success(None, now, now, &mut rng), Due::In(Duration::from_secs(5)));
        assert_eq!(pace.after_failure(9, None, &mut rng), Due::In(Duration::from_secs(5)));
        assert_eq!(Pace::Every(Duration::ZERO).after_failure(1, None, &mut rng), Due::In(MIN_POLL));
    }
}
