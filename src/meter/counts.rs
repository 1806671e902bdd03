//! The counts of this process, and what they cost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::budget::{Account, BudgetStatus, NoBudget, OverBudget};
use super::errors::{Errors, LogLine};
use super::history::History;
use super::label_set::{LabelSet, OTHER};
use super::labels::{Billed, CallKind, Published};
use super::ledger::{Minute, SeriesId, SeriesName};
use super::minute::AnsweredMinute;
use super::money::{Month, Spent};
use super::parts::Parts;
use super::period::Span;
use super::tps::Tps;
use crate::config::{Billing, Budget, Period};
use crate::message::{CallerName, InstanceId, TopicPattern};

/// The most provider codes with series of their own.
const MAX_CODES: usize = 64;

/// Messages of one instance and parent topic, or of one caller.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Messages {
    /// Billed.
    pub billable: u64,
    /// May have been billed.
    pub uncertain: u64,
    /// What the billed ones cost, in the currency.
    pub spend: f64,
}

impl Messages {
    fn add(&mut self, other: Self) {
        self.billable += other.billable;
        self.uncertain += other.uncertain;
        self.spend += other.spend;
    }
}

/// The counts at one moment, for those who show them.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Requests by parent topic and outcome, in the order of [`Published::ALL`].
    pub published: BTreeMap<Arc<str>, [u64; Published::ALL.len()]>,
    /// Calls by kind and code.
    pub calls: BTreeMap<(CallKind, Arc<str>), u64>,
    /// Messages of this process by instance and parent topic.
    pub messages: BTreeMap<InstanceId, BTreeMap<Arc<str>, Messages>>,
    /// Requests by caller and outcome, where there are callers.
    pub callers_published: BTreeMap<CallerName, [u64; Published::ALL.len()]>,
    /// Messages of this process by caller, where there are callers.
    pub callers: BTreeMap<CallerName, Messages>,
    /// Messages of today, in the time zone of the bill, also of earlier processes.
    pub today: BTreeMap<InstanceId, BTreeMap<Arc<str>, Messages>>,
    /// Billable messages in the last whole second and the largest second of this minute.
    pub tps: BTreeMap<InstanceId, (u64, u64)>,
    /// The budgets.
    pub budgets: Vec<BudgetStatus>,
}

/// A call that has its place in the budgets.
#[derive(Debug, Clone, Copy)]
pub(super) struct BegunCall {
    pub(super) series: usize,
    pub(super) kind: CallKind,
    /// The Unix second in which it took it.
    pub(super) second: i64,
}

/// Messages of one instance, parent topic and caller, in this process and today.
#[derive(Debug)]
struct CountedSeries {
    name: SeriesName,
    /// In the ledger.
    ledger_id: Option<SeriesId>,
    billed: Spent,
    uncertain: u64,
    /// What was spent before a price changed.
    spent_before: f64,
    today: Spent,
    today_uncertain: u64,
    /// Which budgets are for it.
    budgets: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Counts {
    topics: LabelSet,
    callers: LabelSet,
    codes: LabelSet,
    published: BTreeMap<Arc<str>, [u64; Published::ALL.len()]>,
    /// Of callers alone.
    callers_published: HashMap<CallerName, [u64; Published::ALL.len()]>,
    calls: BTreeMap<(CallKind, Arc<str>), u64>,
    series: Vec<CountedSeries>,
    /// By instance, parent topic and caller, which is empty where all callers are one. A call looks here, and so costs
    /// the same however many callers there are.
    index: BTreeMap<InstanceId, BTreeMap<Arc<str>, HashMap<CallerName, usize>>>,
    tps: BTreeMap<InstanceId, Tps>,
    pub(super) history: History,
    pub(super) minute: AnsweredMinute,
    pub(super) errors: Errors,
    billing: Billing,
    month: Month,
    today: Span,
    accounts: Vec<Account>,
}

impl Counts {
    pub(super) fn new(max_topics: usize, billing: Billing, now: i64, parts: &Arc<Parts>) -> Self {
        let other = Arc::<str>::from(OTHER);
        let mut counts = Self {
            topics: LabelSet::new(max_topics),
            callers: LabelSet::new(billing.callers.len()),
            codes: LabelSet::new(MAX_CODES),
            published: BTreeMap::from([(other, Default::default())]),
            callers_published: HashMap::new(),
            calls: BTreeMap::new(),
            series: Vec::new(),
            index: BTreeMap::new(),
            tps: BTreeMap::new(),
            history: History::new(now),
            minute: AnsweredMinute::new(now),
            errors: Errors::default(),
            month: Month::new(),
            today: Span::around(now, Period::Day, &billing.time_zone),
            accounts: Vec::new(),
            billing,
        };
        let budgets = counts.billing.budgets.iter().cloned();
        let prices = &counts.billing.prices;
        let account = |budget| Account::new(budget, now, prices, parts);
        counts.accounts = budgets.map(account).collect();
        // Were a topic that a budget names counted as `other`, its budget would miss it.
        let named = counts.accounts.iter().flat_map(|account| &account.budget().parents);
        for topic in named.map(TopicPattern::as_str).filter(|topic| !topic.contains('*')) {
            counts.topics.get(topic);
        }
        for caller in counts.billing.callers.clone() {
            let caller = counts.callers.get(&caller);
            counts.callers_published.insert(caller, Default::default());
        }
        for kind in [CallKind::First, CallKind::Retry, CallKind::Probe] {
            let ok = counts.codes.get("OK");
            counts.calls.insert((kind, ok), 0);
        }
        counts
    }

    pub(super) fn billing(&self) -> &Billing {
        &self.billing
    }

    // === series ===

    /// The series of an instance, parent topic and caller.
    pub(super) fn series(
        &mut self,
        instance: &InstanceId,
        parent: &str,
        caller: Option<&str>,
    ) -> usize {
        let topic = match self.topics.get(parent) {
            topic if &*topic == OTHER => self.shared_label(instance, parent).unwrap_or(topic),
            topic => topic,
        };
        let caller = caller.filter(|caller| !caller.is_empty() && self.counts_callers());
        let caller = caller.map_or_else(|| "".into(), |caller| self.callers.get(caller));
        let known = self.index.get(instance).and_then(|topics| topics.get(&topic)?.get(&caller));
        if let Some(series) = known {
            return *series;
        }
        let series = self.series.len();
        let name = SeriesName { instance: Arc::clone(instance), topic, caller };
        let topics = self.index.entry(Arc::clone(instance)).or_default();
        let callers = topics.entry(Arc::clone(&name.topic)).or_default();
        callers.insert(Arc::clone(&name.caller), series);
        self.tps.entry(Arc::clone(instance)).or_default();
        let budgets = self.budgets_of(&name);
        self.series.push(CountedSeries {
            name,
            ledger_id: None,
            billed: Spent::default(),
            uncertain: 0,
            spent_before: 0.0,
            today: Spent::default(),
            today_uncertain: 0,
            budgets,
        });
        series
    }

    pub(super) fn name(&self, series: usize) -> &SeriesName {
        &self.series[series].name
    }

    /// The instances that are counted.
    pub(super) fn instances(&self) -> impl Iterator<Item = &InstanceId> {
        self.index.keys()
    }

    /// Whether the configuration names callers.
    fn counts_callers(&self) -> bool {
        !self.billing.callers.is_empty()
    }

    /// A topic beyond the last label shares one with all that the same budgets cover: in `other`, a budget
    /// with a pattern would miss it. `None`: no budget has a pattern that matches it.
    fn shared_label(&self, instance: &str, parent: &str) -> Option<Arc<str>> {
        let budgets = self.accounts.iter().map(Account::budget);
        let covering = budgets
            .filter(|budget| budget.covers(instance, parent) && !budget.covers(instance, OTHER));
        let label = Budget::shared_label(covering.clone());
        covering.count().gt(&0).then(|| label.into())
    }

    fn budgets_of(&self, name: &SeriesName) -> Vec<usize> {
        let covering = self.accounts.iter().enumerate().filter(|(_, account)| account.covers(name));
        covering.map(|(index, _)| index).collect()
    }

    /// Its series in the ledger, made by `series` for its first call.
    pub(super) fn ledger_id(
        &mut self,
        series: usize,
        create: impl FnOnce(&SeriesName) -> Option<SeriesId>,
    ) -> Option<SeriesId> {
        let series = &mut self.series[series];
        if series.ledger_id.is_none() {
            series.ledger_id = create(&series.name);
        }
        series.ledger_id
    }

    // === facts ===

    pub(super) fn published(
        &mut self,
        parent: Option<&str>,
        caller: Option<&str>,
        outcome: Published,
        now: i64,
        took: Duration,
    ) {
        self.history.answered(now, outcome.result());
        self.minute.answered(now, outcome.result(), took);
        let topic = self.topics.get(parent.unwrap_or(OTHER));
        self.published.entry(topic).or_default()[outcome as usize] += 1;
        if let Some(caller) = caller.filter(|_| self.counts_callers()) {
            let caller = self.callers.get(caller);
            self.callers_published.entry(caller).or_default()[outcome as usize] += 1;
        }
    }

    /// Whether the budgets of a series have a place for one more message, or will have in a moment.
    pub(super) fn admits(&mut self, series: usize, now: i64) -> Result<(), OverBudget> {
        for budget in &self.series[series].budgets {
            let admitted = self.accounts[*budget].admits(now, &self.billing.prices);
            admitted.map_err(NoBudget::over)?;
        }
        Ok(())
    }

    /// Takes a place in all budgets of a series, or in none. Returns whether more of a shared one is to be claimed now.
    pub(super) fn reserve(&mut self, series: usize, now: i64) -> Result<bool, NoBudget> {
        let budgets = &self.series[series].budgets;
        let mut is_due = false;
        for (at, budget) in budgets.iter().enumerate() {
            match self.accounts[*budget].reserve(now, &self.billing.prices) {
                Ok(due) => is_due |= due,
                Err(error) => {
                    for taken in &budgets[..at] {
                        self.accounts[*taken].release();
                    }
                    return Err(error);
                }
            }
        }
        Ok(is_due)
    }

    /// Why a message of a series has to wait for a part of a shared budget, if it has to.
    pub(super) fn waits(&mut self, series: usize, now: i64) -> Option<OverBudget> {
        let budgets = &self.series[series].budgets;
        budgets.iter().find_map(|budget| self.accounts[*budget].waits(now))
    }

    /// A call has ended.
    pub(super) fn ended(
        &mut self,
        call: BegunCall,
        code: &str,
        request_id: Option<Box<str>>,
        billed: Billed,
        at: Timestamp,
    ) -> LogLine {
        let (code, now) = (self.codes.get(code), at.as_second());
        let BegunCall { series, kind, second } = call;
        self.history.called(now, &code, billed);
        let line = self.errors.called(at, &code, request_id, billed);
        *self.calls.entry((kind, code)).or_default() += 1;
        let spent = match billed {
            Billed::No => Spent::default(),
            Billed::Yes | Billed::Uncertain => self.month.spend(&self.billing, now, 1, billed),
        };
        for budget in &self.series[series].budgets {
            self.accounts[*budget].commit(now, second, billed, &spent);
        }
        self.roll(now);
        let series = &mut self.series[series];
        match billed {
            Billed::No => {}
            Billed::Uncertain => {
                series.uncertain += 1;
                series.today_uncertain += 1;
            }
            Billed::Yes => {
                series.billed.add(&spent);
                series.today.add(&spent);
                self.tps.entry(Arc::clone(&series.name.instance)).or_default().add(now);
            }
        }
        line
    }

    /// Today ends, for those who count it.
    fn roll(&mut self, now: i64) {
        if now < self.today.end {
            return;
        }
        self.today = Span::around(now, Period::Day, &self.billing.time_zone);
        for series in &mut self.series {
            (series.today, series.today_uncertain) = (Spent::default(), 0);
        }
    }

    // === from the ledger ===

    /// The Unix second from which on the ledger must be passed to [`Counts::restore`].
    pub(super) fn restores_from(&self, now: i64) -> i64 {
        let month = Span::around(now, Period::Month, &self.billing.time_zone).start;
        let starts = self.accounts.iter().map(Account::start).chain([self.today.start]);
        let tiers = self.billing.prices.is_tiered().then_some(month);
        starts.chain(tiers).min().unwrap_or(now)
    }

    /// What earlier processes have spent in this minute.
    pub(super) fn restore(&mut self, second: i64, name: &SeriesName, minute: &Minute) {
        let billed = self.month.spend(&self.billing, second, minute.billable, Billed::Yes);
        let uncertain =
            self.month.spend(&self.billing, second, minute.uncertain, Billed::Uncertain);
        for account in &mut self.accounts {
            if account.covers(name) {
                account.restore(second, &billed);
                account.restore(second, &uncertain);
            }
        }
        // Topics of other days take no label from those of today.
        if self.today.contains(second) {
            let series = self.series(&name.instance, &name.topic, Some(&name.caller));
            self.series[series].today.add(&billed);
            self.series[series].today_uncertain += minute.uncertain;
        }
    }

    /// Calls whose end an earlier process did not record.
    pub(super) fn lost(&mut self, name: &SeriesName, calls: u64, now: i64) {
        let series = self.series(&name.instance, &name.topic, Some(&name.caller));
        self.series[series].uncertain += calls;
        self.history.uncertain(now, calls);
    }

    // === settings ===

    /// Takes up other prices. What was spent is spent; today and budgets are seen at the new ones.
    pub(super) fn reprice(&mut self, billing: &Billing) {
        for series in &mut self.series {
            series.spent_before +=
                series.billed.cost(&self.billing.prices) - series.billed.cost(&billing.prices);
        }
        self.billing.prices = billing.prices.clone();
        for account in &self.accounts {
            account.reprice(&billing.prices);
        }
        self.billing.currency.clone_from(&billing.currency);
        self.billing.plan_tps = billing.plan_tps;
    }

    // === for those who show them ===

    pub(super) fn uncertain(&self) -> u64 {
        self.series.iter().map(|series| series.uncertain).sum()
    }

    pub(super) fn snapshot(&mut self, now: i64) -> Snapshot {
        self.roll(now);
        let prices = &self.billing.prices;
        let mut snapshot = Snapshot {
            published: self.published.clone(),
            callers_published: self.callers_published.clone().into_iter().collect(),
            calls: self.calls.clone(),
            callers: self
                .billing
                .callers
                .iter()
                .map(|name| (Arc::clone(name), Messages::default()))
                .collect(),
            ..Snapshot::default()
        };
        for series in &self.series {
            let (instance, topic) = (&series.name.instance, &series.name.topic);
            let messages = Messages {
                billable: series.billed.messages(),
                uncertain: series.uncertain,
                spend: series.spent_before + series.billed.cost(prices),
            };
            let today = Messages {
                billable: series.today.messages(),
                uncertain: series.today_uncertain,
                spend: series.today.cost(prices),
            };
            if !series.name.caller.is_empty() {
                let caller = Arc::clone(&series.name.caller);
                snapshot.callers.entry(caller).or_default().add(messages);
            }
            let to = snapshot.messages.entry(Arc::clone(instance)).or_default();
            to.entry(Arc::clone(topic)).or_default().add(messages);
            let to = snapshot.today.entry(Arc::clone(instance)).or_default();
            to.entry(Arc::clone(topic)).or_default().add(today);
        }
        let tps = self.tps.iter_mut();
        snapshot.tps = tps.map(|(name, tps)| (Arc::clone(name), tps.read(now))).collect();
        let budgets = self.accounts.iter_mut();
        snapshot.budgets = budgets.map(|account| account.status(now, prices)).collect();
        snapshot
    }
}
