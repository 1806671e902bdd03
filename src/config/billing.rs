//! `[billing]`: what a message costs, and what may be spent.

use std::collections::HashSet;

use figment::value::Value;
use jiff::tz::TimeZone;

use super::checks::{instance_id, pattern};
use super::error::ValueError;
use super::parse::{self, Raw, Scalar};
use super::read::{Reader, value, whole};
use super::row::Reload::{Live, LiveUnless};
use super::row::Row;
use super::table::section;
use super::tables::{Table, tables};
use crate::message::{CallerName, InstanceId, TopicPattern};

/// The most steps of a price; no price list of the provider has as many.
pub const MAX_TIERS: usize = 6;
/// Every message looks at each.
const MAX_BUDGETS: usize = 32;
/// More messages than an account sends in a month, and exact as a float.
const MOST_MESSAGES: u64 = 1_000_000_000_000_000;

/// `[billing]`
#[derive(Debug, Clone, PartialEq)]
pub struct Billing {
    /// What money is counted in; only shown.
    pub currency: String,
    /// What messages cost.
    pub prices: Prices,
    /// Message TPS that were bought; `None`: unknown.
    pub plan_tps: Option<u32>,
    /// Whose days and months tiers, today's spend and reports follow.
    pub time_zone: TimeZone,
    /// What may be spent.
    pub budgets: Vec<Budget>,
    /// The callers whose messages are counted apart; those of others count as one.
    pub callers: Vec<CallerName>,
}

/// Prices by how many messages the month has had, from the first tier up.
#[derive(Debug, Clone, PartialEq)]
pub struct Prices(Vec<Tier>);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tier {
    /// Messages of the month before it begins.
    from: u64,
    per_million: f64,
}

impl Prices {
    /// One price for all.
    pub fn flat(per_million: f64) -> Self {
        Self(vec![Tier { from: 0, per_million }])
    }

    /// The tier of a message before which the month has had so many.
    pub fn tier(&self, messages: u64) -> usize {
        self.0.iter().rposition(|tier| tier.from <= messages).unwrap_or(0)
    }

    /// How many more messages its tier has.
    pub fn left_in_tier(&self, messages: u64) -> u64 {
        let next = self.0.get(self.tier(messages) + 1);
        next.map_or(u64::MAX, |next| next.from - messages)
    }

    /// What so many messages of a tier cost, in the currency.
    pub fn cost(&self, tier: usize, messages: u64) -> f64 {
        self.0.get(tier).map_or(0.0, |tier| tier.per_million * messages as f64 / 1e6)
    }

    /// The highest price of a million messages.
    pub fn highest(&self) -> f64 {
        self.0.iter().map(|tier| tier.per_million).fold(0.0, f64::max)
    }

    /// Whether anything costs anything.
    pub fn is_set(&self) -> bool {
        self.0.iter().any(|tier| tier.per_million > 0.0)
    }

    /// Whether the price depends on what the month has had.
    pub fn is_tiered(&self) -> bool {
        self.0.len() > 1
    }
}

/// A budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// Its name in metrics and problems.
    pub name: String,
    /// How much.
    pub limit: Limit,
    /// How long it is for.
    pub period: Period,
    /// Whose hours, days and months.
    pub time_zone: TimeZone,
    /// For this instance; `None`: for all.
    pub instance_id: Option<InstanceId>,
    /// For these parent topics; empty: for all.
    pub parents: Vec<TopicPattern>,
    /// For these callers; empty: for all.
    pub callers: Vec<CallerName>,
    /// Whether messages over it are refused.
    pub refuse: bool,
    /// Who spends it.
    pub scope: BudgetScope,
}

/// Who spends a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetScope {
    /// Each sidecar has all of it.
    Sidecar,
    /// All sidecars of the fleet have it together, through its Redis.
    Fleet {
        /// What one does that does not reach Redis, when the part that it has is used up.
        cut_off: CutOffPolicy,
    },
}

/// What a sidecar does without the Redis that a budget is shared through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOffPolicy {
    /// Messages are refused.
    Refuse,
    /// They are sent and counted, so that the budget may be exceeded.
    Send,
}

impl Budget {
    /// Whether it is for messages of this instance and parent topic, or of this label of several parent
    /// topics ([`Self::shared_label`]).
    pub fn covers(&self, instance: &str, parent: &str) -> bool {
        let is_named = |names: &str| names.split(NAMES).any(|name| name == self.name);
        let covers_parent = match parent.strip_prefix(SHARED) {
            Some(names) => is_named(names),
            None => self.parents.iter().any(|pattern| pattern.matches_text(parent)),
        };
        self.instance_id.as_deref().is_none_or(|id| id == instance)
            && (self.parents.is_empty() || covers_parent)
    }

    /// Whether it is for messages of this caller; the name is empty where all callers are one.
    pub fn covers_caller(&self, caller: &str) -> bool {
        self.callers.is_empty() || self.callers.iter().any(|covered| &**covered == caller)
    }

    /// The label of parent topics that have no series of their own and are covered by these budgets, as in
    /// `other:alarms`. No topic has its colon. The ledger keeps it, so that a budget holds after a restart.
    pub fn shared_label<'a>(budgets: impl Iterator<Item = &'a Self>) -> String {
        let names: Vec<_> = budgets.map(|budget| &*budget.name).collect();
        format!("{SHARED}{}", names.join(NAMES))
    }
}

/// What a shared label begins with, and what stands between its names.
const SHARED: &str = "other:";
const NAMES: &str = "+";

/// How much a budget has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Messages.
    Messages(u64),
    /// Money, in the currency.
    Spend(f64),
}

/// How long a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// From hour to hour.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From the first of a month to that of the next.
    Month,
}

section! {
    pub(super) struct BillingRows [billing] {
        /// What a message costs, for the page, the metrics and `tollgate bill`. What the provider charges
        /// depends on the contract: without a price, messages are counted and nothing is spent.
        ///
        /// What money is counted in; only shown.
        currency: String = "CNY", value(currency), Live;

        /// The price of a million messages.
        price_per_million: f64 = 0, value(|raw| price(raw, 0.0)), LiveUnless("billing.tiers");

        /// The message TPS that you bought; tollgate warns above 80 % of it. 0: not set.
        plan_tps: u32 = 0, whole(0..=1_000_000), Live;

        /// The time zone of the days and months in today's spend, tiers and reports. The provider does not
        /// document which one its bills use.
        time_zone: TimeZone = "Asia/Shanghai", value(time_zone);

        /// A price that changes with the number of messages in the month, instead of price_per_million.
        /// [[billing.tiers]]
        /// from = 0
        /// price_per_million = 12.0
        /// [[billing.tiers]]
        /// from = 100000000
        /// price_per_million = 9.5
        tiers: Vec<Tier> = [], tiers;

        /// What may be spent: messages, or money. tollgate reserves budget before each call, and releases it
        /// if the provider certainly does not bill the call. Each sidecar has the whole budget, or with scope =
        /// "fleet" all of [fleet] have it together.
        /// [[billing.budgets]]
        /// name = "alarms"
        /// messages = 1000000        # or spend = 250.0
        /// period = "day"            # "hour", "day" or "month"
        /// time_zone = "UTC"         # billing.time_zone
        /// topics = ["Alarm/*"]      # parent topics; left out: all
        /// instance_id = "post-…"    # left out: all
        /// on_exceed = "warn"        # or "refuse": 429 until the period ends
        /// scope = "sidecar"         # or "fleet": shared through fleet.url
        /// cut_off = "refuse"        # or "send": without Redis, when this sidecar's part is used up
        budgets: Vec<Budget> = [], budgets;
    }
    check prices_fit(price_per_million, tiers, budgets);
}

fn prices_fit(
    r: &mut Reader<'_>,
    price: Option<&f64>,
    tiers: Option<&Vec<Tier>>,
    budgets: Option<&Vec<Budget>>,
) {
    let (Some(price), Some(tiers)) = (price, tiers) else { return };
    if *price > 0.0 && !tiers.is_empty() {
        let problem = "has a price beside billing.tiers";
        r.conflict("billing.price_per_million", problem, "keep one of them: tiers hold the prices");
    }
    let is_spend = |budget: &Budget| matches!(budget.limit, Limit::Spend(_));
    let has_price = *price > 0.0 || tiers.iter().any(|tier| tier.per_million > 0.0);
    if !has_price && budgets.is_some_and(|budgets| budgets.iter().any(is_spend)) {
        let problem = "has a budget in money, and messages cost nothing";
        r.conflict("billing.budgets", problem, "set billing.price_per_million, or budget messages");
    }
}

/// A budget cannot be shared without what it is shared through.
pub(super) fn shared_budgets_have_a_fleet(r: &mut Reader<'_>, billing: &Billing, has_fleet: bool) {
    let is_shared = |budget: &&Budget| matches!(budget.scope, BudgetScope::Fleet { .. });
    if let Some(budget) = billing.budgets.iter().find(is_shared)
        && !has_fleet
    {
        let problem = format!("has {} with scope = \"fleet\", and there is no fleet", budget.name);
        r.conflict("billing.budgets", problem, "set fleet.url, or remove scope");
    }
}

pub(super) fn billing(r: &mut Reader<'_>) -> Option<Billing> {
    let rows = BillingRows::read(r)?;
    let flat = Prices::flat(rows.price_per_million);
    Some(Billing {
        currency: rows.currency,
        prices: if rows.tiers.is_empty() { flat } else { Prices(rows.tiers) },
        plan_tps: Some(rows.plan_tps).filter(|plan| *plan > 0),
        time_zone: rows.time_zone,
        budgets: rows.budgets,
        callers: Vec::new(),
    })
}

fn currency(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let is_code = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase());
    let remedy = "write a currency's letters, such as \"CNY\" or \"USD\"";
    is_code.then(|| text.to_owned()).ok_or_else(|| ValueError::new("is not a currency", remedy))
}

/// Money for a million messages, or of a budget.
fn price(raw: &Raw, least: f64) -> Result<f64, ValueError> {
    let number = match &raw.value {
        Value::Num(_, number) => number.to_i128().map_or(number.to_f64(), |n| Some(n as f64)),
        Value::String(_, text) if !raw.is_typed() => text.parse().ok(),
        _ => None,
    };
    let remedy = "write an amount of the currency, such as 12.5";
    let number = number.ok_or_else(|| ValueError::new("is not a number", remedy))?;
    // NaN is in no range.
    if (least..=1e12).contains(&number) {
        Ok(number)
    } else {
        Err(ValueError::new("is out of range", remedy))
    }
}

fn time_zone(raw: &Raw) -> Result<TimeZone, ValueError> {
    let remedy = "write a name of the IANA database, such as \"UTC\" or \"Asia/Shanghai\"";
    TimeZone::get(raw.text()?).map_err(|_| ValueError::new("is not a time zone", remedy))
}

fn tiers(r: &mut Reader<'_>, row: &Row) -> Option<Vec<Tier>> {
    let remedy = "write [[billing.tiers]] in the file, with from and price_per_million";
    let tiers = tables(r, row, &["from", "price_per_million"], remedy, |r, table| {
        let from = table.value(r, "from", |raw| parse::whole(raw, &(0..=MOST_MESSAGES)));
        let per_million = table.value(r, "price_per_million", |raw| price(raw, 0.0));
        Some(Tier { from: from?, per_million: per_million? })
    })?;
    let ascending = tiers.windows(2).all(|pair| pair[0].from < pair[1].from);
    if tiers.first().is_some_and(|first| first.from > 0) || !ascending {
        let problem = "does not go up from 0";
        r.conflict(
            row.name,
            problem,
            "the first tier is from = 0, each later one from more messages",
        );
        return None;
    }
    if tiers.len() > MAX_TIERS {
        r.conflict(row.name, format!("has more than {MAX_TIERS} tiers"), "join some of them");
        return None;
    }
    Some(tiers)
}

fn budgets(r: &mut Reader<'_>, row: &Row) -> Option<Vec<Budget>> {
    const NAMES: [&str; 10] = [
        "name",
        "messages",
        "spend",
        "period",
        "time_zone",
        "instance_id",
        "topics",
        "on_exceed",
        "scope",
        "cut_off",
    ];
    let remedy = "write [[billing.budgets]] in the file, with name, period, and messages or spend";
    let of_all = BillingRows::ROWS.iter().find(|row| row.name == "billing.time_zone");
    // A wrong billing.time_zone is an error of its own.
    let zone = of_all.and_then(|row| time_zone(&r.raw(row)).ok()).unwrap_or(TimeZone::UTC);
    let budgets = tables(r, row, &NAMES, remedy, |r, table| budget(r, table, &zone))?;
    let mut names = HashSet::new();
    let before = r.errors.len();
    for (index, budget) in budgets.iter().enumerate() {
        if !names.insert(&budget.name) {
            let key = format!("{}[{index}].name", row.name);
            r.conflict(&key, "is another budget's name, too", "give each budget a name of its own");
        }
    }
    if budgets.len() > MAX_BUDGETS {
        r.conflict(row.name, format!("has more than {MAX_BUDGETS} budgets"), "join some of them");
    }
    (r.errors.len() == before).then_some(budgets)
}

fn budget(r: &mut Reader<'_>, table: &Table<'_>, zone: &TimeZone) -> Option<Budget> {
    let name = table.value(r, "name", |raw| {
        let text = raw.text()?;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = (1..=64).contains(&text.len()) && text.chars().all(fits);
        let remedy = "write 1 to 64 of A-Z a-z 0-9 - _ .";
        is_name.then(|| text.to_owned()).ok_or_else(|| ValueError::new("is not a name", remedy))
    });
    let limit = match (table.part("messages"), table.part("spend")) {
        (Some(_), None) => table
            .value(r, "messages", |raw| parse::whole(raw, &(1..=MOST_MESSAGES)))
            .map(Limit::Messages),
        (None, Some(_)) => {
            table.value(r, "spend", |raw| price(raw, f64::MIN_POSITIVE)).map(Limit::Spend)
        }
        (both, _) => {
            let has = if both.is_some() {
                "both messages and spend"
            } else {
                "neither messages nor spend"
            };
            let problem = format!("has {has}");
            table.wrong(r, problem, "say one of them: how much the budget has")
        }
    };
    let period = table.value(r, "period", |raw| {
        let periods = [("hour", Period::Hour), ("day", Period::Day), ("month", Period::Month)];
        parse::choice(raw, &periods)
    });
    let time_zone = table.value_or(r, "time_zone", zone.clone(), time_zone);
    let instance = table.value_or(r, "instance_id", None, |raw| instance_id(raw).map(Some));
    let parents = match table.part("topics") {
        Some(raw) => r.items(&format!("{}.topics", table.key), &raw, Scalar::Refused, parent),
        None => Some(Vec::new()),
    };
    let refuse = table.value_or(r, "on_exceed", false, |raw| {
        parse::choice(raw, &[("warn", false), ("refuse", true)])
    });
    let scope = scope(r, table);
    Some(Budget {
        name: name?,
        limit: limit?,
        period: period?,
        time_zone: time_zone?,
        instance_id: instance?,
        parents: parents?,
        callers: Vec::new(),
        refuse: refuse?,
        scope: scope?,
    })
}

fn scope(r: &mut Reader<'_>, table: &Table<'_>) -> Option<BudgetScope> {
    let cut_off = table.value_or(r, "cut_off", CutOffPolicy::Refuse, |raw| {
        parse::choice(raw, &[("refuse", CutOffPolicy::Refuse), ("send", CutOffPolicy::Send)])
    })?;
    let shared = BudgetScope::Fleet { cut_off };
    let scope = table.value_or(r, "scope", BudgetScope::Sidecar, |raw| {
        parse::choice(raw, &[("sidecar", BudgetScope::Sidecar), ("fleet", shared)])
    })?;
    if scope == BudgetScope::Sidecar && table.part("cut_off").is_some() {
        let problem = "has cut_off, which is for budgets with scope = \"fleet\"";
        return table.wrong(r, problem, "remove cut_off, or set scope");
    }
    Some(scope)
}

/// A pattern of parent topics, since that is what is counted: `Alarm`, `Alarm/*` or `Al*`.
fn parent(raw: &Raw) -> Result<TopicPattern, ValueError> {
    let pattern = pattern(raw)?;
    let text = pattern.as_str();
    let parent = text.strip_suffix("/*").unwrap_or(text);
    if parent.contains('/') {
        let problem = "names a sub-level, and messages are counted by parent topic";
        return Err(ValueError::new(problem, "write the parent: \"Alarm\" or \"Alarm/*\""));
    }
    Ok(TopicPattern::new(parent))
}
