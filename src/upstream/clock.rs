//! The provider's clock beside ours, and what is added to ours when signing.
//!
//! A wrong `Date` must not take us away from a time at which calls pass: any gateway on the way may have
//! written it.

use jiff::{SignedDuration, Timestamp};

/// The provider refuses a time that is off by more than 15 minutes; five more are for a clock that
/// drifts on. A clock that is further off is the operator's to set.
const MOST: SignedDuration = SignedDuration::from_mins(20);
/// Two answers agree that differ by less: a `Date` is cut to a second, and an answer is on its way for
/// some.
const AGREE: SignedDuration = SignedDuration::from_secs(5);
/// Less than this is the `Date` header's own coarseness.
const COARSE: SignedDuration = SignedDuration::from_millis(1_500);

#[derive(Debug, Default)]
pub(super) struct ProviderClock {
    /// The provider's clock minus ours, as its last answer showed.
    skew: SignedDuration,
    /// What is added to our clock.
    correction: SignedDuration,
    /// The last correction with which a call passed.
    good: SignedDuration,
    /// The skew of the last answer that refused our time, unless a call has passed since.
    suspect: Option<SignedDuration>,
}

/// What an answer says of the time in its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeCheck {
    /// The provider carried the call out, or refused the message: the time was right.
    Passed,
    /// The provider refused it.
    Refused,
    /// Nothing.
    Silent,
}

/// What became of a skew that two answers agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Correction {
    /// It is added to our clock from now on.
    Made(SignedDuration),
    /// It is too far from our clock, or from the last one with which a call passed.
    TooFar(SignedDuration),
}

impl ProviderClock {
    /// The provider's clock minus ours.
    pub(super) fn skew(&self) -> SignedDuration {
        self.skew
    }

    /// Our clock at `now`, as the provider expects it.
    pub(super) fn corrected(&self, now: Timestamp) -> Timestamp {
        now.saturating_add(self.correction).unwrap_or(now)
    }

    /// Learns from an answer with this `Date` that came at `now`.
    pub(super) fn learn(
        &mut self,
        date: Option<Timestamp>,
        now: Timestamp,
        check: TimeCheck,
    ) -> Option<Correction> {
        let skew = date.map(|date| date.duration_since(now));
        let skew = skew.map(|skew| if skew.abs() < COARSE { SignedDuration::ZERO } else { skew });
        self.skew = skew.unwrap_or(self.skew);
        match check {
            TimeCheck::Silent => return None,
            TimeCheck::Passed => {
                self.good = self.correction;
                self.suspect = None;
                return None;
            }
            TimeCheck::Refused => {}
        }
        // An answer without a Date says nothing of how far we are off.
        let skew = skew?;
        let before = self.suspect.replace(skew)?;
        if !near(skew, before, AGREE) || near(skew, self.correction, AGREE) {
            return None;
        }
        if !near(skew, SignedDuration::ZERO, MOST) || !near(skew, self.good, MOST) {
            return Some(Correction::TooFar(skew));
        }
        self.correction = skew;
        Some(Correction::Made(skew))
    }
}

fn near(one: SignedDuration, other: SignedDuration, most: SignedDuration) -> bool {
    one.checked_sub(other).is_some_and(|apart| apart.abs() <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// An answer whose `Date` is so many seconds ahead of our clock.
    fn hear(clock: &mut ProviderClock, ahead: i64, check: TimeCheck) -> Option<Correction> {
        let date = NOW.saturating_add(SignedDuration::from_secs(ahead)).unwrap();
        clock.learn(Some(date), NOW, check)
    }

    fn correction(clock: &ProviderClock) -> i64 {
        clock.corrected(NOW).duration_since(NOW).as_secs()
    }

    #[test]
    fn two_answers_that_agree_correct_the_clock() {
        for ahead in [16 * 60, -16 * 60, 20 * 60, -20 * 60] {
            let mut clock = ProviderClock::default();
            assert_eq!(hear(&mut clock, ahead, TimeCheck::Refused), None);
            assert_eq!(correction(&clock), 0, "one answer is not enough");
            let made = Some(Correction::Made(SignedDuration::from_secs(ahead + 1)));
            let again = hear(&mut clock, ahead + i64::from(ahead < 0), TimeCheck::Refused);
            assert!(
                again == made || again == Some(Correction::Made(SignedDuration::from_secs(ahead)))
            );
            assert!((correction(&clock) - ahead).abs() <= 1);
        }
    }

    #[test]
    fn answers_that_differ_or_have_no_date_correct_nothing() {
        let mut clock = ProviderClock::default();
        for ahead in [960, -960, 1_000, 980] {
            assert_eq!(hear(&mut clock, ahead, TimeCheck::Refused), None);
        }
        // One that passed between them ends the suspicion, one that says nothing does not.
        assert_eq!(hear(&mut clock, 980, TimeCheck::Passed), None);
        assert_eq!(hear(&mut clock, 980, TimeCheck::Refused), None);
        assert_eq!(clock.learn(None, NOW, TimeCheck::Refused), None);
        assert_eq!(correction(&clock), 0);
        assert_eq!(hear(&mut clock, 0, TimeCheck::Silent), None);
        assert!(matches!(hear(&mut clock, 980, TimeCheck::Refused), Some(Correction::Made(_))));
    }

    #[test]
    fn a_date_that_is_too_far_off_corrects_nothing() {
        for date in ["1970-01-01T00:00:00Z", "2026-11-27T13:00:00Z", "2026-11-27T12:20:01Z"]
            .map(|date| date.parse().unwrap())
            .into_iter()
            .chain([Timestamp::MAX, Timestamp::MIN])
        {
            let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
            let mut clock = ProviderClock::default();
            assert_eq!(clock.learn(Some(date), now, TimeCheck::Refused), None);
            let far = clock.learn(Some(date), now, TimeCheck::Refused);
            assert!(matches!(far, Some(Correction::TooFar(_))), "{date}: {far:?}");
            assert_eq!(clock.corrected(now), now);
        }
    }

    #[test]
    fn a_correction_stays_near_the_last_one_that_passed() {
        let mut clock = ProviderClock::default();
        let twice = |clock: &mut ProviderClock, ahead| {
            hear(clock, ahead, TimeCheck::Refused);
            hear(clock, ahead, TimeCheck::Refused)
        };
        assert!(matches!(twice(&mut clock, 960), Some(Correction::Made(_))));
        hear(&mut clock, 960, TimeCheck::Passed);
        assert!(matches!(twice(&mut clock, -960), Some(Correction::TooFar(_))));
        assert_eq!(correction(&clock), 960);
        // Back to our own clock, which is as near.
        assert!(matches!(twice(&mut clock, 0), Some(Correction::Made(_))));
        assert_eq!(correction(&clock), 0);
    }

    #[test]
    fn the_edges_of_time() {
        let mut clock = ProviderClock { correction: MOST, ..ProviderClock::default() };
        assert_eq!(clock.corrected(Timestamp::MAX), Timestamp::MAX);
        assert_eq!(clock.learn(Some(Timestamp::MIN), Timestamp::MAX, TimeCheck::Silent), None);
        assert!(clock.skew() < SignedDuration::ZERO);
    }
}
