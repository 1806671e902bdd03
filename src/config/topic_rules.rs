//! `[[topics.rules]]`: what holds for messages of some topics that say nothing themselves.

use std::time::Duration;

use super::checks::{HOUR, pattern};
use super::error::ValueError;
use super::parse::{self, Raw, Scalar};
use super::read::Reader;
use super::row::Row;
use super::tables::tables;
use crate::message::{Topic, TopicPattern, Urgency};

/// The keys of one rule.
const RULE: [&str; 3] = ["topics", "ttl", "urgency"];
/// As long as the longest `retry.max_age`.
const LONGEST_TTL: Duration = HOUR.saturating_mul(24 * 30);

/// A rule of `[[topics.rules]]`.
#[derive(Debug, Clone)]
pub struct TopicRule {
    /// Its topics.
    pub topics: Vec<TopicPattern>,
    /// The time to live of a message without a `TTL`.
    pub ttl: Option<Duration>,
    /// The urgency of a message without an `Urgency`.
    pub urgency: Option<Urgency>,
}

impl TopicRule {
    pub(super) fn matches(&self, topic: &Topic) -> bool {
        self.topics.iter().any(|pattern| pattern.matches(topic))
    }
}

pub(super) fn rules(r: &mut Reader<'_>, row: &Row) -> Option<Vec<TopicRule>> {
    let remedy = "write [[topics.rules]] in the file, with topics, and ttl or urgency";
    let rules = tables(r, row, &RULE, remedy, |r, table| {
        let topics = table.required(r, "topics", |r, key, raw| {
            let topics = r.items(key, raw, Scalar::Refused, pattern);
            if topics.as_ref().is_some_and(Vec::is_empty) {
                let remedy = "name a pattern, such as \"Alarm/*\"";
                r.conflict(key, "is empty, so the rule never holds", remedy);
            }
            topics
        });
        let ttl = table.value_or(r, "ttl", None, |raw| {
            parse::duration(raw, &(Duration::from_secs(1)..=LONGEST_TTL)).map(Some)
        });
        let urgency = table.value_or(r, "urgency", None, |raw| urgency(raw).map(Some));
        if matches!((&ttl, &urgency), (Some(None), Some(None))) {
            return table.wrong(r, "has neither ttl nor urgency", remedy);
        }
        Some(TopicRule { topics: topics?, ttl: ttl?, urgency: urgency? })
    })?;
    Some(rules)
}

fn urgency(raw: &Raw) -> Result<Urgency, ValueError> {
    parse::choice(raw, &Urgency::ALL.map(|urgency| (urgency.as_str(), urgency)))
}
