//! What may change while running.

use super::read::Reader;
use super::row::{Reload, Row};
use super::sections::{self, rows};
use super::{Config, Loaded};

impl Loaded {
    /// This configuration with the values of `newer` for the keys that may change while running, and
    /// the keys whose change waits for a restart. `None` where that mixture would be invalid: then all
    /// changes wait.
    #[must_use]
    pub fn reloaded(&self, newer: &Self) -> (Option<Config>, Vec<String>) {
        let is_changed =
            |key: &str| self.shown(key) != newer.shown(key) || self.hides_a_change(newer, key);
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
        (config, waiting)
    }

    /// Whether what is not shown of a value, such as a password, differs.
    fn hides_a_change(&self, newer: &Self, key: &str) -> bool {
        let is_masked = self.shown(key).iter().any(|(_, value)| value.contains("***"));
        let given = |loaded: &Self| loaded.given.0.get(key).map(|raw| raw.value.clone());
        is_masked && given(self) != given(newer)
    }

    /// What is shown of this key; of tables, of each of their values.
    fn shown(&self, key: &str) -> Vec<(&str, &str)> {
        let of_key = |shown: &str| {
            shown.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
        };
        let settings = self.settings.iter().filter(|setting| of_key(&setting.key));
        settings.map(|setting| (&*setting.key, &*setting.value)).collect()
    }
}
