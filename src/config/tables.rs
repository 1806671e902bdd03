//! Lists of tables, such as `[[upstream.instances]]`; outside a file they are written as TOML has
//! them on one line, `[{ instance_id = "i", topics = ["A/*"] }]`.

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use figment::{Profile, Provider};

use super::error::ValueError;
use super::nearest::nearest;
use super::parse::{Raw, kind};
use super::read::Reader;
use super::row::Row;
use super::unknown::shown_unknown;

/// One of them, and the name it has in messages: `upstream.instances[0]`.
pub(super) struct Table<'a> {
    pub(super) key: String,
    dict: &'a Dict,
    all: &'a Raw,
    remedy: &'a str,
}

impl Table<'_> {
    /// What this table says of a key.
    pub(super) fn part(&self, name: &str) -> Option<Raw> {
        let value = self.dict.get(name)?.clone();
        Some(Raw { value, origin: self.all.origin.clone() })
    }

    pub(super) fn required<T>(
        &self,
        r: &mut Reader<'_>,
        name: &str,
        read: impl FnOnce(&mut Reader<'_>, &str, &Raw) -> Option<T>,
    ) -> Option<T> {
        if let Some(raw) = self.part(name) {
            return read(r, &format!("{}.{name}", self.key), &raw);
        }
        self.wrong(r, format!("has no {name}"), self.remedy)
    }

    /// The table as a whole is wrong.
    pub(super) fn wrong<T>(
        &self,
        r: &mut Reader<'_>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Option<T> {
        r.record(&self.key, self.all, Err(ValueError::new(problem, remedy)))
    }

    pub(super) fn value<T>(
        &self,
        r: &mut Reader<'_>,
        name: &str,
        read: impl FnOnce(&Raw) -> Result<T, ValueError>,
    ) -> Option<T> {
        self.required(r, name, |r, key, raw| r.record(key, raw, read(raw)))
    }

    /// A key with a value of its own where the table has none.
    pub(super) fn value_or<T>(
        &self,
        r: &mut Reader<'_>,
        name: &str,
        default: T,
        read: impl FnOnce(&Raw) -> Result<T, ValueError>,
    ) -> Option<T> {
        if self.dict.contains_key(name) { self.value(r, name, read) } else { Some(default) }
    }
}

/// What text outside a file says as TOML.
fn on_one_line(all: &Raw) -> Option<Value> {
    let text = all.text().ok().filter(|_| !all.is_typed())?;
    let mut profiles = Toml::string(&format!("all = {text}")).data().ok()?;
    profiles.get_mut(&Profile::Default)?.remove("all")
}

/// Reads all tables of a key, each of which has keys of `names` only. `remedy` says how to write
/// one.
pub(super) fn tables<T>(
    r: &mut Reader<'_>,
    row: &Row,
    names: &[&str],
    remedy: &str,
    read: impl Fn(&mut Reader<'_>, &Table<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let key = row.name;
    let Some(mut all) = r.given(key) else {
        return r.value(row, |_| Ok(Vec::new()));
    };
    if let Some(value) = on_one_line(&all) {
        all.value = value;
    }
    let Value::Array(_, items) = &all.value else {
        let problem = format!("is {}, and must be a list of tables", kind(&all.value));
        return r.record(key, &all, Err(ValueError::new(problem, remedy)));
    };
    r.record(key, &all, Ok(()));
    if !items.is_empty() {
        r.show(key, format!("{} of them", items.len()));
    }
    let before = r.errors.len();
    let mut read_ones = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let key = format!("{key}[{index}]");
        let Value::Dict(_, dict) = item else {
            let problem = format!("is {}, and must be a table", kind(item));
            r.record::<()>(&key, &all, Err(ValueError::new(problem, remedy)));
            continue;
        };
        for (name, value) in dict.iter().filter(|(name, _)| !names.contains(&name.as_str())) {
            let remedy = match nearest(name, names.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("it has {}", names.join(", ")),
            };
            let name = format!("{key}.{}", name.escape_debug());
            let wrong = ValueError::new("is not a key of such a table", remedy);
            let value = shown_unknown(&name, value);
            r.unknown_key(name, value, all.origin.clone(), wrong);
        }
        read_ones.extend(read(r, &Table { key, dict, all: &all, remedy }));
    }
    (r.errors.len() == before).then_some(read_ones)
}
