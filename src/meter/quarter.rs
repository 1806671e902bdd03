//! Quarters of an hour since 1970: what the sidecars of a fleet record their messages by. Hours, days and months of
//! every time zone begin with one.

/// Minutes of a quarter.
const MINUTES: i64 = 15;
const SECONDS: i64 = MINUTES * 60;

/// One of them, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Quarter(i64);

impl Quarter {
    pub(super) const fn of_second(second: i64) -> Self {
        Self(second.div_euclid(SECONDS))
    }

    pub(super) const fn of_minute(minute: i64) -> Self {
        Self(minute.div_euclid(MINUTES))
    }

    /// Its first Unix second.
    pub(super) const fn second(self) -> i64 {
        self.0.saturating_mul(SECONDS)
    }

    /// Its first Unix minute.
    pub(super) const fn minute(self) -> i64 {
        self.0.saturating_mul(MINUTES)
    }

    /// So many later; before it, with a negative number.
    pub(super) const fn later(self, quarters: i64) -> Self {
        Self(self.0.saturating_add(quarters))
    }

    /// From this one up to, and without, another.
    pub(super) fn until(self, end: Self) -> impl Iterator<Item = Self> {
        (self.0..end.0).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::*;
    use crate::config::Period;
    use crate::meter::period::Span;

    #[test]
    fn periods_of_every_time_zone_begin_with_a_quarter() {
        let noon = "2026-11-29T12:00:00Z".parse::<Timestamp>().unwrap().as_second();
        let mut zones = 0;
        for name in jiff::tz::db().available() {
            let Ok(zone) = TimeZone::get(name.as_str()) else { continue };
            for month in 0..12 {
                for period in [Period::Hour, Period::Day, Period::Month] {
                    let start = Span::around(noon + month * 30 * 86_400, period, &zone).start;
                    assert_eq!(Quarter::of_second(start).second(), start, "{name}");
                }
            }
            zones += 1;
        }
        assert!(zones > 300, "{zones}");
    }

    #[test]
    fn seconds_minutes_and_quarters() {
        let quarter = Quarter::of_second(1_800_899);
        assert_eq!((quarter.second(), quarter.minute()), (1_800_000, 30_000));
        assert_eq!(Quarter::of_minute(30_014), quarter);
        assert_eq!(Quarter::of_second(-1).second(), -900);
        let all: Vec<_> = quarter.until(quarter.later(2)).collect();
        assert_eq!(all, [quarter, quarter.later(1)]);
    }
}
