//! The query of `GET /messages`, in both directions.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{LISTED, MAX_LISTED};
use crate::message::MessageId;
use crate::meter::Query;
use crate::spool::Selection;

/// Which messages to list. Its selection has no ids: `GET /messages/<Id>` shows a single message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Which messages.
    pub selection: Selection,
    /// From the first after this id.
    pub after: Option<MessageId>,
    /// The most messages, up to [`MAX_LISTED`].
    pub limit: usize,
}

impl Listing {
    /// Parses a query. An unknown parameter is an error.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut listing = Self { selection: Selection::default(), after: None, limit: LISTED };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8();
            let value = value.map_err(|_| format!("{name} is not UTF-8"))?.into_owned();
            match name {
                "state" => listing.selection.state = Some(parse_word(name, value)?),
                "reason" => listing.selection.reason = Some(parse_word(name, value)?),
                "topic" => listing.selection.topic = Some(value),
                "after" => {
                    let after = value.parse();
                    listing.after = Some(after.map_err(|_| format!("{value:?} is no message id"))?);
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LISTED).contains(limit));
                    let wrong = || format!("limit is not a number from 1 to {MAX_LISTED}");
                    listing.limit = limit.ok_or_else(wrong)?;
                }
                _ => {
                    return Err(format!(
                        "{name:?} is not one of state, topic, reason, after, limit"
                    ));
                }
            }
        }
        Ok(listing)
    }

    /// The listing as a query.
    pub fn query(&self) -> String {
        let word = |value: Value| value.as_str().map(str::to_owned);
        let json = |value: Result<Value, serde_json::Error>| value.ok().and_then(word);
        let selection = &self.selection;
        let pairs = [
            ("state", selection.state.and_then(|state| json(serde_json::to_value(state)))),
            ("reason", selection.reason.and_then(|reason| json(serde_json::to_value(reason)))),
            ("topic", selection.topic.clone()),
            ("after", self.after.map(|id| id.to_string())),
            ("limit", Some(self.limit.to_string())),
        ];
        let pairs = pairs.into_iter().filter_map(|(name, value)| {
            value.map(|value| format!("{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)))
        });
        pairs.collect::<Vec<_>>().join("&")
    }
}

/// Parses the query of `GET /bill`.
pub(super) fn bill(query: &str) -> Result<Query, String> {
    let (mut from, mut to, mut by) = (None, None, None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let minute = || value.parse().map_err(|_| format!("{name} is not a Unix minute"));
        match name {
            "from" => from = Some(minute()?),
            "to" => to = Some(minute()?),
            "by" => by = Some(parse_word(name, value.to_owned())?),
            _ => return Err(format!("{name:?} is not one of from, to, by")),
        }
    }
    match (from, to, by) {
        (Some(from), Some(to), Some(by)) => Ok(Query { from, to, by }),
        _ => Err("a bill needs from, to and by".to_owned()),
    }
}

/// The query of `GET /bill` for this bill.
pub fn bill_query(query: &Query) -> String {
    let by = serde_json::to_value(query.by).unwrap_or_default();
    format!("from={}&to={}&by={}", query.from, query.to, by.as_str().unwrap_or_default())
}

fn parse_word<T: DeserializeOwned>(name: &str, value: String) -> Result<T, String> {
    serde_json::from_value(Value::String(value)).map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;
    use crate::spool::{Reason, Which};

    #[test]
    fn what_is_written_is_read() {
        let selection = Selection {
            topic: Some("Alarm/*&limit=1".to_owned()),
            reason: Some(Reason::Expired),
            state: Some(Which::Dead),
            ..Selection::default()
        };
        let listing = Listing { selection, after: Some(MessageId::new()), limit: 7 };
        assert_eq!(Listing::parse(&listing.query()).unwrap(), listing);
        assert_eq!(Listing::parse("").unwrap().limit, LISTED);
    }

    #[test]
    fn mistakes_are_refused() {
        for wrong in
            ["limit=0", "limit=1001", "limit=x", "state=gone", "after=x", "stat=dead", "topic=%ff"]
        {
            assert!(Listing::parse(wrong).is_err(), "{wrong}");
        }
    }
}
