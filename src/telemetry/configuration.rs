//! Which configuration holds, and what became of the last change: for metrics, the page and `/readyz`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::view::ConfigurationView;
use crate::config::{Config, warnings};

/// The longest error that is shown; the log has all of it.
const LONGEST_ERROR: usize = 300;

/// What is known of the configuration; its owner reports changes here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Configuration(Arc<Mutex<ConfigurationView>>);

impl Configuration {
    /// The one that a sidecar starts with.
    pub fn new(config: &Config) -> Self {
        Self(Arc::new(Mutex::new(ConfigurationView {
            hash: 0,
            read: Timestamp::now(),
            error: None,
            pending: Vec::new(),
            lifted: lifted(config),
        })))
    }

    /// A configuration was read; changes of `pending` wait for a restart.
    pub fn read(&self, hash: u64, pending: Vec<String>) {
        let mut view = self.lock();
        view.hash = hash;
        view.read = Timestamp::now();
        view.error = None;
        view.pending = pending;
    }

    /// A changed configuration is invalid, and the one before still holds.
    pub fn refused(&self, error: &str) {
        let line = error.split_whitespace().collect::<Vec<_>>().join(" ");
        self.lock().error = Some(line.chars().take(LONGEST_ERROR).collect());
    }

    /// These values hold now.
    pub(crate) fn applied(&self, config: &Config) {
        self.lock().lifted = lifted(config);
    }

    pub(super) fn view(&self) -> ConfigurationView {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ConfigurationView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lifted(config: &Config) -> Vec<String> {
    let warnings = warnings(config).into_iter();
    warnings.filter(|w| w.key.starts_with("ceilings.")).map(|w| w.to_string()).collect()
}

impl ConfigurationView {
    /// One line of `/readyz?verbose`.
    pub(super) fn line(&self) -> String {
        match (&self.error, self.pending.is_empty()) {
            (Some(error), _) => format!("configuration: the last change is invalid: {error}\n"),
            (None, false) => {
                format!("configuration: a restart is needed for {}\n", self.pending.join(", "))
            }
            (None, true) => "configuration: ok\n".to_owned(),
        }
    }

    pub(super) fn families(&self) -> Vec<Option<MetricFamily>> {
        let successful = Family::gauge(
            "tollgate_config_last_reload_successful",
            "1 if the configuration was valid when it was last read; 0: the one before still holds",
        )
        .value(&[], f64::from(u8::from(self.error.is_none())));
        let read = Family::gauge(
            "tollgate_config_last_reload_success_timestamp_seconds",
            "When a valid configuration was last read",
        )
        .value(&[], self.read.as_second() as f64);
        let pending = Family::gauge(
            "tollgate_config_pending_restart_keys",
            "Changed keys that tollgate applies at its next start only",
        )
        .value(&[], self.pending.len() as f64);
        let hash = Family::gauge(
            "tollgate_config_hash",
            "A number of the configuration that was last read; equal where it is equal",
        )
        .value(&[], self.hash as f64);
        [successful, read, pending, hash].map(Family::done).into()
    }
}
