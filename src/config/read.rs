//! The one way a key is read: its name, its default and its check stand in one call, so that what
//! `check` prints, what holds by default and what is documented cannot drift apart.

use std::ops::RangeInclusive;
use std::time::Duration;

use figment::Figment;
use figment::value::Value;

use super::error::{ConfigError, ValueError};
use super::parse::{self, Raw};
use super::setting::{Origin, Setting, show};

/// Reads keys out of the merged sources, and remembers every value and every mistake. A key whose
/// value is wrong reads as `None`; the rest is still read, so that all mistakes come at once.
pub(super) struct Reader<'a> {
    sources: &'a Figment,
    pub(super) settings: Vec<Setting>,
    pub(super) mistakes: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Figment) -> Self {
        Self { sources, settings: Vec::new(), mistakes: Vec::new() }
    }

    // === Any type ===

    /// A key with a default, which is written as it would be in the environment.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        default: &str,
        read: impl FnOnce(&Raw) -> Result<T, ValueError>,
    ) -> Option<T> {
        let raw = self.given(key).unwrap_or_else(|| by_default(default));
        self.settle(key, &raw, read(&raw))
    }

    /// A key that may be left out: `Some(None)` then.
    #[expect(clippy::option_option, reason = "outside: is it right; inside: is there one")]
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Raw) -> Result<T, ValueError>,
    ) -> Option<Option<T>> {
        if let Some(raw) = self.given(key) {
            self.settle(key, &raw, read(&raw)).map(Some)
        } else {
            let value = "(not set)".to_owned();
            self.settings.push(Setting { key: key.to_owned(), value, origin: Origin::Default });
            Some(None)
        }
    }

    /// A list; each wrong item is a mistake of its own. In a file, `lone` lets one item stand
    /// without brackets.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        default: &str,
        lone: bool,
        read: impl Fn(&Raw) -> Result<T, ValueError>,
    ) -> Option<Vec<T>> {
        let raw = self.given(key).unwrap_or_else(|| by_default(default));
        self.items(key, &raw, lone, read)
    }

    /// The items of a list that is at hand.
    pub(super) fn items<T>(
        &mut self,
        key: &str,
        raw: &Raw,
        lone: bool,
        read: impl Fn(&Raw) -> Result<T, ValueError>,
    ) -> Option<Vec<T>> {
        let items = self.settle(key, raw, parse::items(raw, lone))?;
        let before = self.mistakes.len();
        let mut values = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match read(item) {
                Ok(value) => values.push(value),
                Err(wrong) => self.mistake(format!("{key}[{index}]"), item, wrong),
            }
        }
        (self.mistakes.len() == before).then_some(values)
    }

    // === Types that many keys have ===

    pub(super) fn duration(
        &mut self,
        key: &str,
        default: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.value(key, default, |raw| parse::duration(raw, &range))
    }

    pub(super) fn count(
        &mut self,
        key: &str,
        default: &str,
        range: RangeInclusive<u32>,
    ) -> Option<usize> {
        let range = usize::try_from(*range.start()).ok()?..=usize::try_from(*range.end()).ok()?;
        self.value(key, default, |raw| parse::whole(raw, &range))
    }

    pub(super) fn size(
        &mut self,
        key: &str,
        default: &str,
        range: RangeInclusive<u64>,
    ) -> Option<usize> {
        self.value(key, default, |raw| parse::size(raw, &range))
    }

    pub(super) fn boolean(&mut self, key: &str, default: &str) -> Option<bool> {
        self.value(key, default, parse::boolean)
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        default: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        self.value(key, default, |raw| parse::choice(raw, choices))
    }

    // === Underneath ===

    /// The value that some source gives.
    pub(super) fn given(&self, key: &str) -> Option<Raw> {
        let value = self.sources.find_value(key).ok()?;
        let origin = self.sources.get_metadata(value.tag()).map_or(Origin::Default, Origin::of);
        Some(Raw { value, origin })
    }

    /// Remembers a value, and the mistake if it is one.
    pub(super) fn settle<T>(
        &mut self,
        key: &str,
        raw: &Raw,
        read: Result<T, ValueError>,
    ) -> Option<T> {
        let (value, origin) = (show(key, &raw.value), raw.origin.clone());
        self.settings.push(Setting { key: key.to_owned(), value, origin });
        match read {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.mistake(key.to_owned(), raw, wrong);
                None
            }
        }
    }

    /// A key that was read and is right by itself, but not beside the others.
    pub(super) fn clash(
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
        self.mistakes.push(ConfigError { origin, key: key.to_owned(), value, problem, remedy });
    }

    /// A key beside those that are read.
    pub(super) fn stranger(
        &mut self,
        key: String,
        value: Option<String>,
        origin: Origin,
        wrong: ValueError,
    ) {
        let ValueError { problem, remedy } = wrong;
        self.mistakes.push(ConfigError { origin, key, value, problem, remedy });
    }

    /// Puts what follows from a value in the place of how it was written.
    pub(super) fn show(&mut self, key: &str, value: String) {
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.key == key) {
            setting.value = value;
        }
    }

    fn mistake(&mut self, key: String, raw: &Raw, wrong: ValueError) {
        // An item is shown as its list's key would be.
        let shown = show(key.split('[').next().unwrap_or(&key), &raw.value);
        self.stranger(key, Some(shown), raw.origin.clone(), wrong);
    }
}

fn by_default(text: &str) -> Raw {
    Raw { value: Value::from(text), origin: Origin::Default }
}
