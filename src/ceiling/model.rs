//! `permits.lua` once more, as a pure function: what the script is held against, and what
//! simulations of fleets run on. Times are microseconds of the server's clock.

use std::cmp::Ordering;
use std::collections::BTreeMap;

const LEASE: i64 = 10_000_000;
const LONG: i64 = 30_000_000;
const HORIZON: i64 = 500_000;
const SPREAD: i64 = 50_000;
const LAG: i64 = 30_000;
const CHUNK: i64 = 1_000;
const PARK: i64 = 30_000_000;
const PARK_EVERY: i64 = 1_000_000;
const SKEW: i64 = 1_000_000;
const SHORT: i64 = 1_000_000;
const LATEST: i64 = 2_000_000;
const SETTLE: i64 = 1_000_000;
const WINDOW: i64 = 1_001_000;

/// What one call asks.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask {
    pub(super) figures: Vec<i64>,
    pub(super) want: usize,
    pub(super) core: usize,
    pub(super) park: bool,
    pub(super) answered: i64,
    pub(super) cycle: i64,
    pub(super) min: i64,
    pub(super) hold: i64,
    pub(super) back: Vec<Back>,
}

/// A permit of each ceiling that comes back.
#[derive(Debug, Clone)]
pub(super) struct Back {
    pub(super) ids: Vec<i64>,
    pub(super) nonce: i64,
    pub(super) free_in: i64,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gets {
    pub(super) now: i64,
    pub(super) learn_in: i64,
    pub(super) short: i64,
    pub(super) ask_in: i64,
    pub(super) figures: Vec<i64>,
    pub(super) parked: i64,
    pub(super) owed: i64,
    pub(super) wide: i64,
    pub(super) out: Vec<Out>,
}

/// A permit of each ceiling that goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Out {
    pub(super) ids: Vec<i64>,
    pub(super) nonce: i64,
    pub(super) ready_in: i64,
}

/// One ceiling as the server keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) run: String,
    /// Scores; a permit's id is its place.
    pub(super) permits: Vec<i64>,
    pub(super) parked: BTreeMap<i64, i64>,
    pub(super) out: BTreeMap<i64, i64>,
    pub(super) learn: i64,
    pub(super) goal: i64,
    pub(super) goal_at: i64,
    pub(super) tick: i64,
    pub(super) pace: i64,
    pub(super) short_at: i64,
    pub(super) owe: i64,
    pub(super) batch: i64,
    pub(super) parked_at: i64,
    pub(super) answered: i64,
}

impl Kept {
    fn size(&self) -> i64 {
        i64::try_from(self.permits.len()).unwrap_or(i64::MAX)
    }

    fn begin(&mut self, figure: i64, run: &str, now: i64, hold: i64) {
        if self.run != run || self.permits.is_empty() {
            let (goal, learn) = (figure, odd(now + LONG));
            *self = Self { run: run.to_owned(), goal, goal_at: now, learn, ..Self::default() };
        }
        if figure <= self.goal || now >= self.goal_at + LONG {
            (self.goal, self.goal_at) = (figure, now);
        }
        let size = self.size();
        let from = if now < self.learn { self.learn } else { now + LONG };
        let to = self.goal.clamp(size - CHUNK, size + CHUNK);
        for id in size..to {
            let probes = id < (self.goal + 19) / 20;
            self.permits.push(if probes { from } else { from + hold });
            if !probes {
                self.out.insert(id, from);
            }
        }
        self.permits.truncate(usize::try_from(to).unwrap_or(0));
        self.out.retain(|id, _| *id < to);
        self.parked.retain(|_, back| *back > now);
    }

    fn release(&mut self, from: i64, to: i64, now: i64, hold: i64) {
        let within = self.out.iter().filter(|(_, last)| (from..=to).contains(*last));
        let mut found: Vec<_> = within.map(|(id, last)| (*id, *last)).collect();
        found.sort_by(by_score);
        for (id, last) in found.into_iter().take(usize::try_from(CHUNK).unwrap_or(0)) {
            let score = usize::try_from(id).ok().and_then(|id| self.permits.get(id));
            if score == Some(&(last + hold)) {
                self.set(id, now + SETTLE + WINDOW);
                self.out.remove(&id);
            } else if last + hold <= now {
                self.out.remove(&id);
            }
        }
    }

    fn settle(&mut self, ask: &Ask, now: i64) {
        self.answered = self.answered.max(ask.answered);
        self.release(i64::MIN, (self.answered - 1).min(now - ask.min), now, ask.hold);
        if self.answered > self.learn && now >= self.learn {
            self.release(self.learn, self.learn, now, ask.hold);
        }
    }

    fn park(&mut self, id: i64, now: i64) {
        let back = now + PARK / 2 + PARK * self.owe / self.batch;
        self.set(id, back);
        self.parked.insert(id, back);
        self.owe -= 1;
    }

    fn back(&mut self, id: i64, back: &Back, ask: &Ask, (now, claims): (i64, bool)) {
        let Some(score) = usize::try_from(id).ok().and_then(|id| self.permits.get(id)) else {
            return;
        };
        let till = back.nonce - ask.hold + ask.cycle;
        let unclaimed = *score == self.learn || self.out.get(&id) == Some(&self.learn);
        let unread = back.free_in == ask.hold;
        let within = |end: i64, most: i64| (now + SKEW + 1..=most).contains(&end);
        let lives = unread && within(back.nonce, self.learn + ask.hold) || within(till, self.learn);
        if *score != back.nonce && !(claims && now < self.learn && unclaimed && lives) {
            return;
        }
        if unread {
            let last = odd(now) - 1;
            self.set(id, last + ask.hold);
            self.out.insert(id, last);
            return;
        }
        self.out.remove(&id);
        if self.owe > 0 {
            self.park(id, now);
        } else {
            self.set(id, now + back.free_in);
        }
    }

    fn push_back(&mut self, now: i64) {
        if now < self.parked_at + PARK_EVERY {
            return;
        }
        let at_work = self.size() - self.resting();
        self.owe += ((at_work + 9) / 10).min(at_work - 1).max(0);
        self.batch = self.owe;
        self.parked_at = now;
    }

    fn resting(&self) -> i64 {
        i64::try_from(self.parked.len()).unwrap_or(i64::MAX) + self.owe
    }

    fn park_free(&mut self, now: i64) {
        for _ in 0..self.owe.min(CHUNK) {
            match self.first() {
                Some((id, score)) if score <= now => self.park(id, now),
                _ => return,
            }
        }
    }

    fn set(&mut self, id: i64, score: i64) {
        if let Some(kept) = usize::try_from(id).ok().and_then(|id| self.permits.get_mut(id)) {
            *kept = score;
        }
    }

    fn scores(&self) -> impl Iterator<Item = (i64, i64)> {
        (0..).zip(self.permits.iter().copied())
    }

    fn first(&self) -> Option<(i64, i64)> {
        self.scores().min_by(by_score)
    }

    fn fits(&self, slot: i64) -> Option<(i64, i64)> {
        self.scores().filter(|(_, score)| *score <= slot).max_by(by_score)
    }

    fn free(&self, now: i64) -> i64 {
        i64::try_from(self.permits.iter().filter(|score| **score <= now).count())
            .unwrap_or(i64::MAX)
    }
}

/// The end of learning is odd, and that of no lease is.
fn odd(x: i64) -> i64 {
    x - x % 2 + 1
}

/// Redis orders equal scores by the bytes of their members.
fn by_score(a: &(i64, i64), b: &(i64, i64)) -> Ordering {
    a.1.cmp(&b.1).then_with(|| {
        // As text: with as many digits, and the shorter first.
        let digits = |id: i64| id.checked_ilog10().unwrap_or(0);
        let (one, other) = (digits(a.0), digits(b.0));
        let as_long = |id: i64, digits: u32| id * 10_i64.pow(one.max(other) - digits);
        as_long(a.0, one).cmp(&as_long(b.0, other)).then(one.cmp(&other))
    })
}

/// A server whose fleet has been at work, and no permit of these figures is out.
pub(super) fn at_rest(figures: &[i64], run: &str, now: i64) -> Vec<Kept> {
    let hold = LONG;
    let mut kept = Vec::new();
    let ask = Ask { figures: figures.to_vec(), hold, ..Ask::default() };
    serve(&mut kept, &ask, run, now - 4 * LONG);
    for ceiling in &mut kept {
        ceiling.out.clear();
    }
    kept
}

/// One call of the script.
pub(super) fn serve(kept: &mut Vec<Kept>, ask: &Ask, run: &str, now: i64) -> Gets {
    answer(kept, ask, run, now, Claims::All)
}

/// In which ceilings a permit of before a warm-up may be given back during it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claims {
    All,
    /// Not in the account's: it is that of all regions, and each region has a holder of the permit.
    AllButTheFirst,
}

fn answer(kept: &mut Vec<Kept>, ask: &Ask, run: &str, now: i64, claims: Claims) -> Gets {
    kept.resize_with(ask.figures.len(), Kept::default);
    for (ceiling, figure) in kept.iter_mut().zip(&ask.figures) {
        ceiling.begin(*figure, run, now, ask.hold);
    }
    for back in &ask.back {
        for (k, (ceiling, id)) in kept.iter_mut().zip(&back.ids).enumerate() {
            let claims = claims == Claims::All || k > 0;
            ceiling.back(*id, back, ask, (now, claims));
        }
    }
    for ceiling in kept.iter_mut() {
        ceiling.settle(ask, now);
    }
    if ask.park {
        kept[0].push_back(now);
    }
    kept[0].park_free(now);

    let (mut out, mut again) = (Vec::new(), 0);
    for n in 0..ask.want {
        let mut from: Vec<_> = kept.iter().map(|c| now.max(c.pace - LAG)).collect();
        let mut slot = from.iter().copied().fold(now, i64::max);
        let (mut ids, mut late) = (Vec::new(), None);
        for (k, ceiling) in kept.iter().enumerate().rev() {
            let Some((id, score)) = ceiling.fits(slot).or_else(|| ceiling.first()) else { break };
            ids.insert(0, id);
            if score > slot {
                (slot, from[k], late) = (score, score, Some(k));
            }
        }
        if slot > now + HORIZON || (!out.is_empty() && slot > now + SPREAD) {
            if let Some(k) = late {
                kept[k].short_at = now;
            }
            again = slot - now - SPREAD / 2;
            break;
        }
        again = slot - now;
        let last = odd(now + if n < ask.core { LONG } else { LEASE } - ask.cycle) - 1;
        let nonce = last + ask.hold;
        for ((ceiling, id), from) in kept.iter_mut().zip(&ids).zip(&from) {
            ceiling.pace = ceiling.pace.max(*from) + 985_000 / ceiling.size();
            ceiling.set(*id, nonce);
            ceiling.out.insert(*id, last);
        }
        out.push(Out { ids, nonce, ready_in: slot - now });
    }

    let scarce = kept.iter().rposition(|c| c.free(now) * 8 < c.size());
    let mut ask_in = again.min(LATEST);
    if let Some(k) = scarce.filter(|_| ask.want > 0) {
        let ceiling = &mut kept[k];
        let many = i64::try_from(out.len().max(1)).unwrap_or(i64::MAX);
        let turn = ceiling.tick.max(now + 1_000) + 950_000 / ceiling.size() * many;
        ceiling.tick = turn.min(now + LATEST);
        ask_in = ceiling.tick - now;
    }
    Gets {
        now,
        learn_in: kept.iter().map(|c| c.learn - now).max().unwrap_or(0).max(0),
        short: i64::from(kept.iter().any(|c| now < c.short_at + SHORT)),
        ask_in,
        figures: kept.iter().map(|c| c.goal).collect(),
        parked: kept[0].resting(),
        owed: kept[0].owe,
        wide: 0,
        out,
    }
}

/// One call of the script by a sidecar that knows its region, beside the account's ceiling of all
/// regions.
pub(super) fn serve_region(
    kept: &mut Vec<Kept>,
    wide: &mut Kept,
    ask: &Ask,
    run: &str,
    now: i64,
) -> Gets {
    if wide.run != run || wide.permits.is_empty() {
        return serve(kept, ask, run, now);
    }
    kept.resize_with(ask.figures.len(), Kept::default);
    kept[0] = std::mem::take(wide);
    let gets = answer(kept, ask, run, now, Claims::AllButTheFirst);
    *wide = std::mem::take(&mut kept[0]);
    Gets { wide: 1, ..gets }
}
