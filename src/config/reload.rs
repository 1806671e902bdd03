//! What may change while running.

use super::read::Reader;
use super::sections::{self, rows};
use super::table::{Reload, Row};
use super::{Config, Loaded};

impl Loaded {
    /// This configuration with what `newer` says of the keys that may change while running; and
    /// the keys whose change waits for a restart: all, where the mixture would be invalid.
    #[must_use]
    pub fn reloaded(&self, newer: &Self) -> (Config, Vec<String>) {
        let is_changed = |key: &str| self.shown(key) != newer.shown(key);
        let waits = |row: &Row| match row.reload {
            Reload::Restart => true,
            Reload::Live => false,
            Reload::LiveUnless(other) => is_changed(other),
        };
        let mut given = self.given.clone();
        for row in rows().filter(|row| !waits(row)) {
            match newer.given.0.get(row.name) {
                Some(raw) => given.0.insert(row.name, raw.clone()),
                None => given.0.remove(row.name),
            };
        }
        let mut reader = Reader::new(&given);
        let config = sections::config(&mut reader).filter(|_| reader.errors.is_empty());
        let waiting = rows().filter(|row| is_changed(row.name) && (config.is_none() || waits(row)));
        let waiting = waiting.map(|row| row.name.to_owned()).collect();
        (config.unwrap_or_else(|| self.config.clone()), waiting)
    }

    fn shown(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|setting| setting.key == key).map(|setting| &*setting.value)
    }
}
