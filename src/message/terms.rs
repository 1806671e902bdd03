//! Until when a message is worth sending, and how urgent it is: what `TTL` and `Urgency` of RFC 8030 say.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The longest time to live; a longer one counts as this, as RFC 9111 has it for its seconds.
const LONGEST: Duration = Duration::from_secs(1 << 31);

/// How much later a message counts as come for each level that it is less urgent.
const STEP: Duration = Duration::from_secs(10);

/// How urgent a message is, from the least urgent up.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// It can wait the longest.
    VeryLow,
    /// It can wait.
    Low,
    /// As all messages that say nothing.
    #[default]
    Normal,
    /// It goes first.
    High,
}

impl Urgency {
    /// All, from the least urgent up.
    pub const ALL: [Self; 4] = [Self::VeryLow, Self::Low, Self::Normal, Self::High];

    /// Its word in the `Urgency` header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VeryLow => "very-low",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    /// The urgency with this word, in either case, as RFC 8030's grammar has it.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|urgency| urgency.as_str().eq_ignore_ascii_case(word))
    }

    /// How much later than it came a message counts as come: messages are called in the order of these moments.
    /// So one is overtaken only by messages that came within this time after it, and waiting moves it up.
    pub fn handicap(self) -> Duration {
        match self {
            Self::High => Duration::ZERO,
            Self::Normal => STEP,
            Self::Low => STEP * 2,
            Self::VeryLow => STEP * 3,
        }
    }
}

/// The end of a message's time to live: no call for it begins from this moment on.
///
/// Within a process the monotonic clock counts, so that a step of the wall clock neither drops a message nor
/// sends one too late. What is stored is a time of the wall clock, for the next process and for peers.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    at: Instant,
    wall: Timestamp,
}

impl PartialEq for Expiry {
    /// What is stored: the monotonic clock differs from process to process.
    fn eq(&self, other: &Self) -> bool {
        self.wall == other.wall
    }
}

impl Eq for Expiry {}

/// The monotonic clock of this machine: a paused clock of tokio has no place on the wall clock.
#[allow(clippy::disallowed_methods, reason = "tokio's clock may be paused")]
fn monotonic() -> std::time::Instant {
    std::time::Instant::now()
}

impl Expiry {
    /// So long after `start`.
    pub fn after(start: Instant, ttl: Duration) -> Self {
        let at = start + ttl.min(LONGEST);
        // In this order: a pause between them makes it no later.
        let (wall, now, end) = (Timestamp::now(), monotonic(), at.into_std());
        let wall = match end.checked_duration_since(now) {
            Some(left) => wall.checked_add(left).unwrap_or(Timestamp::MAX),
            None => wall.checked_sub(now - end).unwrap_or(Timestamp::MIN),
        };
        // Shorter, where it is stored.
        let wall = Timestamp::from_millisecond(wall.as_millisecond()).unwrap_or(wall);
        Self { at, wall }
    }

    /// At this time of the wall clock, for a message that was stored at `kept_at`. A clock that is behind, as
    /// before a machine has asked for the time, makes it no longer than it was then.
    pub fn at_time(wall: Timestamp, kept_at: Timestamp) -> Self {
        let now = monotonic();
        let left = wall.duration_since(Timestamp::now()).min(wall.duration_since(kept_at));
        let at = match Duration::try_from(left) {
            Ok(left) => now.checked_add(left),
            Err(_) => now.checked_sub(left.unsigned_abs()),
        };
        // Where the machine has started since, it is over, too.
        Self { at: Instant::from_std(at.unwrap_or(now)), wall }
    }

    /// By the monotonic clock.
    pub fn at(self) -> Instant {
        self.at
    }

    /// By the wall clock.
    pub fn timestamp(self) -> Timestamp {
        self.wall
    }

    /// Whether no call may begin any more.
    pub fn is_over(self) -> bool {
        Instant::now() >= self.at
    }
}

/// How long a message may wait for its calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lifespan {
    /// As long as `retry.max_age`.
    #[default]
    Unlimited,
    /// Until then.
    Until(Expiry),
    /// `TTL: 0`: as long as its caller waits. It is never stored.
    AtOnce,
}

/// What a message's caller asks for, and the provider is not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// Until when it is worth sending.
    pub lifespan: Lifespan,
    /// Its order among others.
    pub urgency: Urgency,
}

impl Terms {
    /// When its time to live ends, if it has one.
    pub fn expiry(&self) -> Option<Expiry> {
        match self.lifespan {
            Lifespan::Until(expiry) => Some(expiry),
            Lifespan::Unlimited | Lifespan::AtOnce => None,
        }
    }

    /// Whether no call for it may begin any more.
    pub fn is_over(&self) -> bool {
        self.expiry().is_some_and(Expiry::is_over)
    }

    /// The earlier of its end and `other`.
    pub fn by(&self, other: Instant) -> Instant {
        self.expiry().map_or(other, |expiry| expiry.at().min(other))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for urgency in Urgency::ALL {
            let json = serde_json::to_string(&urgency).unwrap();
            assert_eq!(json, format!("{:?}", urgency.as_str()));
            assert_eq!(Urgency::of(&urgency.as_str().to_uppercase()), Some(urgency));
        }
        for word in ["", "urgent", "very low", "high,low", "high "] {
            assert_eq!(Urgency::of(word), None, "{word:?}");
        }
        assert!(Urgency::ALL.windows(2).all(|pair| pair[0].handicap() > pair[1].handicap()));
    }

    /// The next process has begun before its machine has asked for the time.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_behind_makes_it_no_longer() {
        let kept_at = Timestamp::now() + jiff::SignedDuration::from_hours(24);
        let expiry = Expiry::at_time(kept_at + jiff::SignedDuration::from_secs(30), kept_at);
        assert!(expiry.at() <= Instant::now() + Duration::from_secs(31));
    }

    /// The next process of a paused clock finds the same end.
    #[tokio::test(start_paused = true)]
    async fn both_clocks_agree() {
        for seconds in [0, 1, 3_600, u64::MAX] {
            tokio::time::advance(Duration::from_hours(1)).await;
            let expiry = Expiry::after(Instant::now(), Duration::from_secs(seconds));
            let again = Expiry::at_time(expiry.timestamp(), Timestamp::MIN);
            let apart = expiry.at().max(again.at()) - expiry.at().min(again.at());
            assert!(apart < Duration::from_secs(10), "{apart:?}");
            assert_eq!(again, expiry);
        }
        assert!(
            Expiry::at_time(Timestamp::MIN, Timestamp::MIN).is_over()
                && !Expiry::at_time(Timestamp::MAX, Timestamp::MIN).is_over()
        );
    }
}
