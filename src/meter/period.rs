//! Hours, days and months of a time zone, as Unix seconds.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Unit, ZonedRound};

use crate::config::Period;

/// From its first second to the first after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

impl Span {
    /// The period around a moment. Where the calendar ends, ten thousand years from now, it is a
    /// day long.
    pub(crate) fn around(second: i64, period: Period, zone: &TimeZone) -> Self {
        let span = || -> Result<Self, jiff::Error> {
            let at = Timestamp::from_second(second)?.to_zoned(zone.clone());
            let (start, next) = match period {
                Period::Hour => {
                    let floor = ZonedRound::new().smallest(Unit::Hour);
                    let start = at.round(floor.mode(jiff::RoundMode::Trunc))?;
                    let next = start.checked_add(1.hour())?;
                    (start, next)
                }
                Period::Day => (at.start_of_day()?, at.tomorrow()?.start_of_day()?),
                Period::Month => {
                    let start = at.first_of_month()?.start_of_day()?;
                    let next = start.checked_add(1.month())?.start_of_day()?;
                    (start, next)
                }
            };
            Ok(Self { start: start.timestamp().as_second(), end: next.timestamp().as_second() })
        };
        span().unwrap_or(Self { start: second, end: second.saturating_add(86_400) })
    }

    pub(crate) fn contains(&self, second: i64) -> bool {
        (self.start..self.end).contains(&second)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn second(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    #[test]
    fn hours_days_and_months_are_those_of_the_zone() {
        let zone = |name| TimeZone::get(name).unwrap();
        for (at, period, name, start, end) in [
            (
                "2026-11-23T10:17:03Z",
                Period::Hour,
                "UTC",
                "2026-11-23T10:00:00Z",
                "2026-11-23T11:00:00Z",
            ),
            // Half an hour beside the others.
            (
                "2026-11-23T10:17:03Z",
                Period::Hour,
                "Asia/Kolkata",
                "2026-11-23T09:30:00Z",
                "2026-11-23T10:30:00Z",
            ),
            (
                "2026-11-23T16:00:00Z",
                Period::Day,
                "Asia/Shanghai",
                "2026-11-23T16:00:00Z",
                "2026-11-24T16:00:00Z",
            ),
            (
                "2026-11-23T15:59:59Z",
                Period::Day,
                "Asia/Shanghai",
                "2026-11-22T16:00:00Z",
                "2026-11-23T16:00:00Z",
            ),
            // A day of 25 hours.
            (
                "2026-10-25T12:00:00Z",
                Period::Day,
                "Europe/Berlin",
                "2026-10-24T22:00:00Z",
                "2026-10-25T23:00:00Z",
            ),
            (
                "2026-12-31T23:59:59Z",
                Period::Month,
                "UTC",
                "2026-12-01T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
        ] {
            let span = Span::around(second(at), period, &zone(name));
            assert_eq!(
                span,
                Span { start: second(start), end: second(end) },
                "{at} {period:?} {name}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_moment_is_in_its_period_and_the_next_begins_where_it_ends(
            at in 0_i64..4_000_000_000,
            period in prop_oneof![Just(Period::Hour), Just(Period::Day), Just(Period::Month)],
            zone in prop_oneof![Just("UTC"), Just("Asia/Shanghai"), Just("Europe/Berlin")],
        ) {
            let zone = TimeZone::get(zone).unwrap();
            let span = Span::around(at, period, &zone);
            prop_assert!(span.contains(at));
            prop_assert_eq!(Span::around(span.end, period, &zone).start, span.end);
            prop_assert_eq!(Span::around(span.end - 1, period, &zone), span);
        }
    }
}
