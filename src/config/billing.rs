//! `[billing]`: what a message costs, and what may be spent.

use std::collections::HashSet;

use figment::value::Value;
use jiff::tz::TimeZone;

use super::checks;
use super::error::ValueError;
use super::parse::{self, Raw};
use super::read::Reader;
use super::tables::{Table, tables};
use super::upstream::instance_id;
use crate::message::{InstanceId, TopicPattern};

/// Steps of a price; more is nobody's price list.
pub const MAX_TIERS: usize = 6;
/// Every message looks at each.
const MAX_BUDGETS: usize = 32;
/// The provider's bills seem to follow Chinese days; it does not say.
const TIME_ZONE: &str = "Asia/Shanghai";
/// More messages than anybody sends in a month, and exact as a float.
const MOST_MESSAGES: u64 = 1_000_000_000_000_000;

/// `[billing]`
#[derive(Debug, Clone, PartialEq)]
pub struct Billing {
    /// What money is counted in; only shown.
    pub currency: String,
    /// What messages cost.
    pub prices: Prices,
    /// Message TPS that were bought; `None`: not said.
    pub plan_tps: Option<u32>,
    /// Whose days and months tiers, today's spend and reports follow.
    pub time_zone: TimeZone,
    /// What may be spent.
    pub budgets: Vec<Budget>,
}

/// Prices by how many messages the month has had, from the first tier up.
#[derive(Debug, Clone, PartialEq)]
pub struct Prices(Vec<Tier>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Tier {
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
    /// Whether messages over it are refused.
    pub refuse: bool,
}

impl Budget {
    /// Whether it is for messages of this instance and parent topic.
    pub fn covers(&self, instance: &str, parent: &str) -> bool {
        self.instance_id.as_deref().is_none_or(|id| id == instance)
            && (self.parents.is_empty() || self.parents.iter().any(|p| p.matches_text(parent)))
    }
}

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

pub(super) fn billing(r: &mut Reader<'_>) -> Option<Billing> {
    let currency = r.value("billing.currency", "CNY", |raw| {
        let text = raw.text()?;
        let is_code = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase());
        let remedy = "write a currency's letters, such as \"CNY\" or \"USD\"";
        is_code.then(|| text.to_owned()).ok_or_else(|| ValueError::new("is not a currency", remedy))
    });
    let price = r.value("billing.price_per_million", "0", |raw| price(raw, 0.0));
    let tiers = tiers(r);
    let plan = r.value("billing.plan_tps", "0", |raw| parse::whole(raw, &(0..=1_000_000_u32)));
    let zone = r.value("billing.time_zone", TIME_ZONE, time_zone);
    let budgets = budgets(r, zone.as_ref());
    if let (Some(price), Some(tiers)) = (price, &tiers)
        && price > 0.0
        && !tiers.is_empty()
    {
        let problem = "has a price beside billing.tiers";
        r.clash("billing.price_per_million", problem, "keep one of them: tiers hold the prices");
    }
    let (price, tiers) = (price?, tiers?);
    let prices = if tiers.is_empty() { Prices::flat(price) } else { Prices(tiers) };
    let budgets = budgets?;
    if !prices.is_set() && budgets.iter().any(|b| matches!(b.limit, Limit::Spend(_))) {
        let problem = "has a budget in money, and messages cost nothing";
        r.clash("billing.budgets", problem, "set billing.price_per_million, or budget messages");
    }
    Some(Billing {
        currency: currency?,
        prices,
        plan_tps: Some(plan?).filter(|plan| *plan > 0),
        time_zone: zone?,
        budgets,
    })
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

fn tiers(r: &mut Reader<'_>) -> Option<Vec<Tier>> {
    const KEY: &str = "billing.tiers";
    let remedy = "write [[billing.tiers]] in the file, with from and price_per_million";
    let tiers = tables(r, KEY, &["from", "price_per_million"], remedy, |r, table| {
        let from = table.value(r, "from", |raw| parse::whole(raw, &(0..=MOST_MESSAGES)));
        let per_million = table.value(r, "price_per_million", |raw| price(raw, 0.0));
        Some(Tier { from: from?, per_million: per_million? })
    })?;
    let ascending = tiers.windows(2).all(|pair| pair[0].from < pair[1].from);
    if tiers.first().is_some_and(|first| first.from > 0) || !ascending {
        let problem = "does not go up from 0";
        r.clash(KEY, problem, "the first tier is from = 0, each later one from more messages");
        return None;
    }
    if tiers.len() > MAX_TIERS {
        r.clash(KEY, format!("has more than {MAX_TIERS} tiers"), "join some of them");
        return None;
    }
    Some(tiers)
}

fn budgets(r: &mut Reader<'_>, zone: Option<&TimeZone>) -> Option<Vec<Budget>> {
    const KEY: &str = "billing.budgets";
    const NAMES: [&str; 8] =
        ["name", "messages", "spend", "period", "time_zone", "instance_id", "topics", "on_exceed"];
    let remedy = "write [[billing.budgets]] in the file, with name, period, and messages or spend";
    let budgets = tables(r, KEY, &NAMES, remedy, |r, table| budget(r, table, zone))?;
    let mut names = HashSet::new();
    let before = r.mistakes.len();
    for (index, budget) in budgets.iter().enumerate() {
        if !names.insert(&budget.name) {
            let key = format!("{KEY}[{index}].name");
            r.clash(&key, "is another budget's name, too", "give each budget a name of its own");
        }
    }
    if budgets.len() > MAX_BUDGETS {
        r.clash(KEY, format!("has more than {MAX_BUDGETS} budgets"), "join some of them");
    }
    (r.mistakes.len() == before).then_some(budgets)
}

fn budget(r: &mut Reader<'_>, table: &Table<'_>, zone: Option<&TimeZone>) -> Option<Budget> {
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
    // A wrong billing.time_zone is a mistake of its own.
    let zone = zone.cloned().unwrap_or(TimeZone::UTC);
    let time_zone = table.value_or(r, "time_zone", zone, time_zone);
    let instance = table.value_or(r, "instance_id", None, |raw| instance_id(raw).map(Some));
    let parents = match table.part("topics") {
        Some(raw) => r.items(&format!("{}.topics", table.key), &raw, false, parent),
        None => Some(Vec::new()),
    };
    let refuse = table.value_or(r, "on_exceed", false, |raw| {
        parse::choice(raw, &[("warn", false), ("refuse", true)])
    });
    Some(Budget {
        name: name?,
        limit: limit?,
        period: period?,
        time_zone: time_zone?,
        instance_id: instance?,
        parents: parents?,
        refuse: refuse?,
    })
}

/// A pattern of parent topics, since that is what is counted: `Alarm`, `Alarm/*` or `Al*`.
fn parent(raw: &Raw) -> Result<TopicPattern, ValueError> {
    let pattern = checks::pattern(raw)?;
    let text = pattern.as_str();
    let parent = text.strip_suffix("/*").unwrap_or(text);
    if parent.contains('/') {
        let problem = "names a sub-level, and messages are counted by parent topic";
        return Err(ValueError::new(problem, "write the parent: \"Alarm\" or \"Alarm/*\""));
    }
    Ok(TopicPattern::new(parent))
}
