//! What Redis stores of a fleet's bill: names of keys, and values as text.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::answer::clean;
use crate::meter::ledger::{Minute, SeriesName};
use crate::meter::period::Span;
use crate::meter::quarter::Quarter;

/// How long a quarter is kept; in bill.lua, too.
pub(super) const KEPT: Duration = Duration::from_hours(100 * 24);

/// Fields of the records that are no sidecar's: the time of the first write, and what Redis has lost.
pub(super) const SINCE: &str = "since";
pub(super) const LOSSES: &str = "losses";

/// The keys of an account's bill.
#[derive(Debug, Clone)]
pub(super) struct BillKeys(String);

impl BillKeys {
    pub(super) fn new(account: &str) -> Self {
        Self(format!("tollgate:{{{account}}}:bill"))
    }

    /// When each sidecar wrote last.
    pub(super) fn seen(&self) -> String {
        format!("{}:seen", self.0)
    }

    pub(super) fn records(&self) -> String {
        format!("{}:records", self.0)
    }

    /// When each that shares budgets wrote last.
    pub(super) fn sharing(&self) -> String {
        format!("{}:sharing", self.0)
    }

    /// The messages of a quarter.
    pub(super) fn quarter(&self, quarter: Quarter) -> String {
        format!("{}:quarter:{}", self.0, quarter.second())
    }

    /// What was granted of a budget in its period.
    pub(super) fn budget(&self, name: &str, period: Span) -> String {
        format!("{}:budget:{}:{name}", self.0, period.start)
    }

    /// Billable messages of a Unix second.
    pub(super) fn second(&self, second: i64) -> String {
        format!("{}:second:{second}", self.0)
    }
}

/// What a sidecar says of itself: of one process, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SidecarRecord {
    /// Its machine's name; a pod's is the pod's.
    pub(super) name: String,
    /// The Unix second of its start.
    pub(super) since: i64,
    /// When it wrote this, by its own clock.
    pub(super) at: i64,
    /// Calls that may have begun and that no quarter has, by instance.
    pub(super) room: BTreeMap<String, u64>,
    /// Whether it has ended in order, and no calls follow.
    pub(super) ended: bool,
}

/// A record with the number of its write. The script adds a field.
pub(super) fn record_text(number: u64, record: &SidecarRecord) -> String {
    // Texts and numbers: there is nothing that could not be serialised.
    format!("{number} {}", serde_json::to_string(record).unwrap_or_default())
}

/// A record as it is read: any client of that Redis may have written it.
pub(super) fn read_record(text: &str) -> Option<SidecarRecord> {
    // Its number, and the recall that it has reported to.
    let json = text.splitn(3, ' ').nth(2)?;
    let mut record: SidecarRecord = serde_json::from_str(json).ok()?;
    record.name = clean(&record.name).to_string();
    record.room = record.room.into_iter().map(|(instance, n)| (label(&instance), n)).collect();
    Some(record)
}

/// The name of a series: the instance, then topic and caller, each on a line.
pub(super) fn series_text(name: &SeriesName) -> String {
    format!("{}\n{}", name.instance, name.scope())
}

/// The messages of a quarter, from its fields. What cannot be read is left out.
pub(super) fn read_quarter(
    fields: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<SeriesName, Minute> {
    let mut series = BTreeMap::<_, Minute>::new();
    for (field, value) in fields {
        let read = || {
            let (what, (instance, scope)) = (field.get(..1)?, field.get(1..)?.split_once('\n')?);
            let name = SeriesName::of_scope(&label(instance), scope);
            let (topic, caller) = (label(&name.topic).into(), label(&name.caller).into());
            Some((what, SeriesName { topic, caller, ..name }, value.parse::<u64>().ok()?))
        };
        let Some((what, name, n)) = read() else { continue };
        let counted = series.entry(name).or_default();
        match what {
            "b" => counted.billable = counted.billable.saturating_add(n),
            "u" => counted.uncertain = counted.uncertain.saturating_add(n),
            "p" => counted.peak = counted.peak.max(n),
            _ => {}
        }
    }
    series
}

/// Neither commas nor quotes nor control characters: tables and CSV show it as it is.
fn label(text: &str) -> String {
    let is_plain =
        |c: &char| !c.is_control() && !c.is_whitespace() && !matches!(c, ',' | '"' | '\'');
    clean(&text.chars().filter(is_plain).collect::<String>()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for scope in ["", "TopicA", "TopicA\norders", "\norders", "TopicA\n*"] {
            let name = SeriesName::of_scope("post-cn-1", scope);
            let fields = ["b", "u", "p"].map(|what| format!("{what}{}", series_text(&name)));
            let [b, u, p] = fields;
            let read = read_quarter([
                (b, "7".to_owned()),
                (u, "8".to_owned()),
                (p, u64::MAX.to_string()),
                ("xpost-cn-1\nTopicA".to_owned(), "1".to_owned()),
                ("b".to_owned(), "1".to_owned()),
                (String::new(), "1".to_owned()),
                ("bpost-cn-1\nTopicB".to_owned(), "-1".to_owned()),
            ]);
            let counted = Minute { billable: 7, uncertain: 8, peak: u64::MAX };
            assert_eq!(read.get(&name), Some(&counted), "{scope:?}");
            assert!(read.values().filter(|counted| counted.billable > 0).count() == 1);
        }
        let record = SidecarRecord {
            name: "pod-a".to_owned(),
            since: 900,
            at: 1_000,
            room: BTreeMap::from([("post-cn-1".to_owned(), 20)]),
            ended: false,
        };
        let text = record_text(7, &record);
        assert!(text.starts_with("7 {"), "{text}");
        assert_eq!(read_record(&text.replacen(' ', " 0 ", 1)), Some(record));
    }

    #[test]
    fn what_others_write_is_cleaned() {
        let field = "bpost\u{1b}[2J\nTop,ic\"A\nor ders".to_owned();
        let read = read_quarter([(field, "1".to_owned())]);
        let name = SeriesName::of_scope("post[2J", "TopicA\norders");
        assert_eq!(read.keys().collect::<Vec<_>>(), [&name]);
        let text = r#"1 0 {"name":"pod\u001b[2J","since":0,"at":0,"room":{"a,b":1},"ended":false}"#;
        let record = read_record(text).unwrap();
        assert_eq!((&*record.name, record.room["ab"]), ("pod\u{fffd}[2J", 1));
        assert_eq!(read_record("1 0 nothing"), None);
    }
}
