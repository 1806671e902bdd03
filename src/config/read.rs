//! How a row of the table is read from the merged sources.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use figment::value::Value;

use super::error::{ConfigError, ValueError};
use super::origin::Origin;
use super::parse::{self, Raw, Scalar};
use super::row::Row;
use super::setting::{Setting, show};

/// What the merged sources say, by key.
#[derive(Clone, Default)]
pub(super) struct Given(pub(super) BTreeMap<&'static str, Raw>);

impl fmt::Debug for Given {
    /// Values may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Reads keys, and remembers every value and every error. A key whose value is wrong reads as
/// `None`; the rest is still read, so that all errors come at once.
pub(super) struct Reader<'a> {
    given: &'a Given,
    pub(super) settings: Vec<Setting>,
    pub(super) errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(given: &'a Given) -> Self {
        Self { given, settings: Vec::new(), errors: Vec::new() }
    }

    /// The value that some source gives.
    pub(super) fn given(&self, key: &str) -> Option<Raw> {
        self.given.0.get(key).cloned()
    }

    /// The value that some source gives, or the default.
    pub(super) fn raw(&self, row: &Row) -> Raw {
        self.given(row.name).unwrap_or_else(|| by_default(row.default_text()))
    }

    /// A key with the default of its row.
    pub(super) fn value<T>(
        &mut self,
        row: &Row,
        parse: impl FnOnce(&Raw) -> Result<T, ValueError>,
    ) -> Option<T> {
        self.value_or(row, row.default_text(), parse)
    }

    /// A key whose default depends on other keys.
    pub(super) fn value_or<T>(
        &mut self,
        row: &Row,
        default: &str,
        parse: impl FnOnce(&Raw) -> Result<T, ValueError>,
    ) -> Option<T> {
        let raw = self.given(row.name).unwrap_or_else(|| by_default(default));
        self.record(row.name, &raw, parse(&raw))
    }

    /// The items of a list; each wrong item is an error of its own.
    pub(super) fn items<T>(
        &mut self,
        key: &str,
        raw: &Raw,
        scalar: Scalar,
        parse: impl Fn(&Raw) -> Result<T, ValueError>,
    ) -> Option<Vec<T>> {
        let items = self.record(key, raw, parse::items(raw, scalar))?;
        let before = self.errors.len();
        let mut values = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match parse(item) {
                Ok(value) => values.push(value),
                Err(wrong) => self.wrong_value(format!("{key}[{index}]"), item, wrong),
            }
        }
        (self.errors.len() == before).then_some(values)
    }

    /// Remembers a value, and the error if it is one.
    pub(super) fn record<T>(
        &mut self,
        key: &str,
        raw: &Raw,
        parsed: Result<T, ValueError>,
    ) -> Option<T> {
        let (value, origin) = (show(key, &raw.value), raw.origin.clone());
        self.settings.push(Setting { key: key.to_owned(), value, origin });
        match parsed {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.wrong_value(key.to_owned(), raw, wrong);
                None
            }
        }
    }

    /// A key that was read and is right by itself, but not beside the others.
    pub(super) fn conflict(
        &mut self,
        key: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let setting = self.settings.iter().find(|setting| setting.key == key);
        let (value, origin) = match setting {
            Some(setting) => (Some(setting.value.clone()), setting.origin.clone()),
            None => (None, Origin::Default),
        };
        let (problem, remedy) = (problem.into(), remedy.into());
        self.errors.push(ConfigError { origin, key: key.to_owned(), value, problem, remedy });
    }

    /// A duration that another key bounds.
    pub(super) fn not_longer(
        &mut self,
        (key, value): (&str, Option<&Duration>),
        (bound, most): (&str, Option<&Duration>),
        remedy: &str,
    ) {
        if let (Some(value), Some(most)) = (value, most)
            && value > most
        {
            self.conflict(key, format!("is longer than {bound} ({})", parse::human(*most)), remedy);
        }
    }

    /// A key of a table that has no such key.
    pub(super) fn unknown_key(
        &mut self,
        key: String,
        value: Option<String>,
        origin: Origin,
        wrong: ValueError,
    ) {
        let ValueError { problem, remedy } = wrong;
        self.errors.push(ConfigError { origin, key, value, problem, remedy });
    }

    /// Replaces a value as it was written by what follows from it.
    pub(super) fn show(&mut self, key: &str, value: String) {
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.key == key) {
            setting.value = value;
        }
    }

    fn wrong_value(&mut self, key: String, raw: &Raw, wrong: ValueError) {
        // An item is shown as its list's key would be.
        let shown = show(key.split('[').next().unwrap_or(&key), &raw.value);
        self.unknown_key(key, Some(shown), raw.origin.clone(), wrong);
    }
}

fn by_default(text: &str) -> Raw {
    Raw { value: Value::from(text), origin: Origin::Default }
}

// === What a row names as its reader ===

/// How the value of a key is read.
pub(super) trait ReadKey<T> {
    /// `None` where the value is wrong; the reader has the error then.
    fn read(&self, r: &mut Reader<'_>, row: &Row) -> Option<T>;
    /// The values that it takes, for the reference.
    fn range(&self) -> String {
        String::new()
    }
}

impl<T, F: Fn(&mut Reader<'_>, &Row) -> Option<T>> ReadKey<T> for F {
    fn read(&self, r: &mut Reader<'_>, row: &Row) -> Option<T> {
        self(r, row)
    }
}

/// A reader that knows which values it takes.
pub(super) struct Ranged<F> {
    pub(super) range: String,
    pub(super) read: F,
}

impl<T, F: Fn(&mut Reader<'_>, &Row) -> Option<T>> ReadKey<T> for Ranged<F> {
    fn read(&self, r: &mut Reader<'_>, row: &Row) -> Option<T> {
        (self.read)(r, row)
    }

    fn range(&self) -> String {
        self.range.clone()
    }
}

pub(super) fn value<T>(
    parse: impl Fn(&Raw) -> Result<T, ValueError>,
) -> impl Fn(&mut Reader<'_>, &Row) -> Option<T> {
    move |r, row| r.value(row, &parse)
}

/// A key that may be left out: `Some(None)` then.
pub(super) fn optional<T>(
    parse: impl Fn(&Raw) -> Result<T, ValueError>,
) -> impl Fn(&mut Reader<'_>, &Row) -> Option<Option<T>> {
    move |r, row| {
        if let Some(raw) = r.given(row.name) {
            return r.record(row.name, &raw, parse(&raw)).map(Some);
        }
        let (key, value) = (row.name.to_owned(), "(not set)".to_owned());
        r.settings.push(Setting { key, value, origin: Origin::Default });
        Some(None)
    }
}

/// A key that must be set.
pub(super) fn required<T>(
    parse: impl Fn(&Raw) -> Result<T, ValueError>,
    remedy: &'static str,
) -> impl Fn(&mut Reader<'_>, &Row) -> Option<T> {
    let read = optional(parse);
    move |r, row| {
        let value = read(r, row)?;
        if value.is_none() {
            r.conflict(row.name, "is required", remedy);
        }
        value
    }
}

pub(super) fn list<T>(
    scalar: Scalar,
    parse: impl Fn(&Raw) -> Result<T, ValueError>,
) -> impl Fn(&mut Reader<'_>, &Row) -> Option<Vec<T>> {
    move |r, row| {
        let raw = r.raw(row);
        r.items(row.name, &raw, scalar, &parse)
    }
}

pub(super) fn duration(range: RangeInclusive<Duration>) -> impl ReadKey<Duration> {
    let shown = format!("{} to {}", parse::human(*range.start()), parse::human(*range.end()));
    Ranged { range: shown, read: value(move |raw| parse::duration(raw, &range)) }
}

pub(super) fn whole<T>(range: RangeInclusive<T>) -> impl ReadKey<T>
where
    T: TryFrom<i128> + PartialOrd + fmt::Display,
{
    let shown = format!("{} to {}", range.start(), range.end());
    Ranged { range: shown, read: value(move |raw| parse::whole(raw, &range)) }
}

pub(super) fn size<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl ReadKey<T> {
    let shown = format!("{} to {}", ByteSize(*range.start()), ByteSize(*range.end()));
    Ranged { range: shown, read: value(move |raw| parse::size(raw, &range)) }
}

/// A share from 0 to 1.
pub(super) fn share() -> impl ReadKey<f64> {
    Ranged { range: "0 to 1".to_owned(), read: value(parse::share) }
}

/// `true` or `false`.
pub(super) fn boolean() -> impl ReadKey<bool> {
    Ranged { range: "true or false".to_owned(), read: value(parse::boolean) }
}

pub(super) fn choice<T: Copy>(choices: &'static [(&'static str, T)]) -> impl ReadKey<T> {
    let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
    Ranged { range: words.join(" or "), read: value(|raw| parse::choice(raw, choices)) }
}
