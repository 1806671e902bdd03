//! The last whole seconds of a clock, in a ring: counting costs a few additions and no memory.

/// A clock that was set back further than this begins anew: the old seconds would lie ahead.
const SET_BACK: i64 = 5;

/// The last whole seconds, and the one that is not over yet.
#[derive(Debug)]
pub(super) struct SecondRing<T> {
    ring: Box<[T]>,
    /// The Unix second that is counted now.
    now: i64,
    /// The first that was counted from its beginning.
    first: i64,
}

impl<T: Clone> SecondRing<T> {
    /// Of so many whole seconds.
    pub(super) fn new(whole: usize, now: i64, fresh: &T) -> Self {
        Self { ring: vec![fresh.clone(); whole + 1].into(), now, first: now + 1 }
    }

    /// Ends the seconds before `now`, of which the new ones begin as `fresh`, and gives the one that is
    /// counted.
    pub(super) fn at(&mut self, now: i64, fresh: &T) -> &mut T {
        if now < self.now - SET_BACK {
            self.ring.fill(fresh.clone());
            (self.now, self.first) = (now, now + 1);
        }
        for second in (self.now + 1).max(now + 1 - self.slots())..=now {
            *self.slot(second) = fresh.clone();
        }
        self.now = self.now.max(now);
        self.slot(self.now)
    }

    /// The last whole second, and those after `since` up to it, the oldest first. Those before the start
    /// are left out.
    pub(super) fn whole(
        &mut self,
        now: i64,
        since: Option<i64>,
        fresh: &T,
    ) -> (i64, impl Iterator<Item = &T>) {
        self.at(now, fresh);
        let end = self.now - 1;
        let after = since.map_or(i64::MIN, |since| since.saturating_add(1));
        let seconds = after.max(self.first).max(end + 2 - self.slots())..=end;
        (end, seconds.map(|second| &self.ring[self.index(second)]))
    }

    fn slot(&mut self, second: i64) -> &mut T {
        let index = self.index(second);
        &mut self.ring[index]
    }

    /// Never out of bounds: a remainder of the number of slots.
    fn index(&self, second: i64) -> usize {
        usize::try_from(second.rem_euclid(self.slots())).unwrap_or_default()
    }

    fn slots(&self) -> i64 {
        i64::try_from(self.ring.len()).unwrap_or(i64::MAX)
    }
}
