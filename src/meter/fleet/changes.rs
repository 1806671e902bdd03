//! What has been counted and is not in Redis yet: differences, by quarter of an hour and series, and messages by second.

use std::collections::BTreeMap;

use crate::meter::labels::Billed;
use crate::meter::quarter::Quarter;

/// A series of this process, by its number.
pub(super) type FleetSeriesId = u32;

/// Rows of a write: it is one step of Redis, which does nothing else meanwhile.
const MOST_ROWS: usize = 10_000;
/// Seconds of series: so many, and so old.
const MOST_SECONDS: usize = 10_000;
pub(super) const SECONDS_KEPT: i64 = 60;

/// Messages of a series in a quarter that Redis does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) billable: u64,
    pub(super) uncertain: u64,
    /// The largest second of this process, of those that are not in [`Changes::seconds`] any more.
    pub(super) peak: u64,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) rows: BTreeMap<(Quarter, FleetSeriesId), Change>,
    /// Billable messages by Unix second: what all sidecars sent in it is the second of the fleet.
    pub(super) seconds: BTreeMap<(i64, FleetSeriesId), u64>,
}

impl Changes {
    /// A call of a series has ended in this Unix second. `sums`: the series that count it as well, for their largest
    /// seconds.
    pub(super) fn end(
        &mut self,
        id: FleetSeriesId,
        sums: &[FleetSeriesId],
        billed: Billed,
        second: i64,
    ) {
        let row = self.rows.entry((Quarter::of_second(second), id)).or_default();
        match billed {
            Billed::No => {}
            Billed::Uncertain => row.uncertain += 1,
            Billed::Yes => {
                row.billable += 1;
                for id in sums.iter().chain([&id]) {
                    *self.seconds.entry((second, *id)).or_default() += 1;
                }
            }
        }
    }

    /// Adds what others have.
    pub(super) fn merge(&mut self, other: &Self) {
        for (key, change) in &other.rows {
            let row = self.rows.entry(*key).or_default();
            row.billable = row.billable.saturating_add(change.billable);
            row.uncertain = row.uncertain.saturating_add(change.uncertain);
            row.peak = row.peak.max(change.peak);
        }
        for (key, messages) in &other.seconds {
            let second = self.seconds.entry(*key).or_default();
            *second = second.saturating_add(*messages);
        }
    }

    /// Keeps of each second only that it is a largest one: it is too old to be added to those of other sidecars.
    pub(super) fn settle_seconds(&mut self) {
        while let Some(((second, id), messages)) = self.seconds.pop_first() {
            let row = self.rows.entry((Quarter::of_second(second), id)).or_default();
            row.peak = row.peak.max(messages);
        }
    }

    /// Keeps no more than is written at once, however long Redis is gone. `others` names the series that stands for
    /// the other topics of a series' instance.
    pub(super) fn bound(&mut self, others: impl Fn(FleetSeriesId) -> FleetSeriesId) {
        let newest = self.seconds.last_key_value().map_or(i64::MIN, |((second, _), _)| *second);
        while let Some(((second, id), messages)) = self.seconds.first_key_value()
            && (self.seconds.len() > MOST_SECONDS || *second < newest.saturating_sub(SECONDS_KEPT))
        {
            // Alone, it is the least that the fleet's second was.
            let row = self.rows.entry((Quarter::of_second(*second), *id)).or_default();
            row.peak = row.peak.max(*messages);
            self.seconds.pop_first();
        }
        while self.rows.len() > MOST_ROWS
            && let Some((oldest, first)) = self.rows.keys().next().copied()
        {
            // First topics become one, the oldest quarter's before others, then quarters do.
            let topic = self.rows.keys().find(|(_, id)| others(*id) != *id).copied();
            let (from, to) = if let Some((quarter, id)) = topic {
                ((quarter, id), (quarter, others(id)))
            } else {
                let later = self.rows.range((oldest.later(1), 0)..);
                let next = later.map(|((quarter, _), _)| *quarter).next();
                ((oldest, first), (next.unwrap_or(oldest.later(1)), first))
            };
            if let Some(change) = self.rows.remove(&from)
                && change.billable + change.uncertain > 0
            {
                self.merge(&Self { rows: BTreeMap::from([(to, change)]), ..Self::default() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: FleetSeriesId = 0;
    const OTHERS: FleetSeriesId = 1;

    #[test]
    fn calls_are_counted_by_quarter_and_second() {
        let mut changes = Changes::default();
        for (id, billed, second) in [
            (2, Billed::Yes, 899),
            (3, Billed::Yes, 899),
            (2, Billed::Uncertain, 899),
            (2, Billed::Yes, 900),
            (2, Billed::No, 900),
        ] {
            changes.end(id, &[WHOLE], billed, second);
        }
        let row = |billable, uncertain| Change { billable, uncertain, peak: 0 };
        let quarter = Quarter::of_second(0);
        let rows = [((quarter, 2), row(1, 1)), ((quarter, 3), row(1, 0))];
        let rows = rows.into_iter().chain([((quarter.later(1), 2), row(1, 0))]);
        assert_eq!(changes.rows, rows.collect());
        let seconds =
            [((899, WHOLE), 2), ((899, 2), 1), ((899, 3), 1), ((900, WHOLE), 1), ((900, 2), 1)];
        assert_eq!(changes.seconds, seconds.into());
        let mut twice = changes.clone();
        twice.merge(&changes);
        assert_eq!((twice.rows[&(quarter, 2)], twice.seconds[&(899, WHOLE)]), (row(2, 2), 4));
    }

    /// However long Redis is gone, and however many topics there are: nothing is left out.
    #[test]
    fn what_waits_is_bounded() {
        let mut changes = Changes::default();
        let mut calls = 0;
        for quarter in 0..40 {
            for id in 2..1_002 {
                changes.end(id, &[WHOLE], Billed::Yes, quarter * 900 + i64::from(id % 7));
                calls += 1;
            }
            changes.bound(|id| if id == WHOLE { WHOLE } else { OTHERS });
            assert!(changes.rows.len() <= MOST_ROWS && changes.seconds.len() <= MOST_SECONDS);
        }
        let billable = |changes: &Changes| {
            let own = changes.rows.iter().filter(|((_, id), _)| *id != WHOLE);
            own.map(|(_, change)| change.billable).sum::<u64>()
        };
        assert_eq!(billable(&changes), calls);
        let first = *changes.rows.keys().next().unwrap();
        assert_eq!(first.0, Quarter::of_second(0), "topics become one before quarters do");
        assert_eq!(changes.rows[&(first.0, OTHERS)].billable, 1_000);
        let own = Change { billable: 1, uncertain: 0, peak: 1 };
        assert_eq!(changes.rows[&(Quarter::of_second(38 * 900), 2)], own);

        // One series, for years.
        let mut changes = Changes::default();
        for quarter in 0..=i64::try_from(2 * MOST_ROWS).unwrap() {
            changes.end(OTHERS, &[WHOLE], Billed::Yes, quarter * 900);
            changes.bound(|id| id);
        }
        assert!(changes.rows.len() <= MOST_ROWS);
        assert_eq!(billable(&changes), 2 * MOST_ROWS as u64 + 1);
    }
}
