//! What is wrong with the configuration: a change that was not applied, a ceiling that was lifted.

use super::{Concerns, listed};
use crate::telemetry::view::{Level, SidecarStatus};

impl Concerns {
    pub(super) fn configuration(&mut self, status: &SidecarStatus) {
        let configuration = &status.configuration;
        if let Some(error) = &configuration.error {
            self.add(
                "configuration_invalid",
                Level::Warn,
                "The changed configuration is invalid",
                format!("Nothing of it was applied: {}.", error.trim_end_matches('.')),
                "Correct it; `tollgate check` shows all errors. tollgate reads it again by itself.",
            );
        }
        if !configuration.pending.is_empty() {
            let pending = configuration.pending.iter().map(String::as_str);
            let names = listed(pending, configuration.pending.len());
            self.add(
                "configuration_pending",
                Level::Warn,
                "A changed configuration waits for a restart",
                format!("tollgate reads these keys at its start only: {names}."),
                "Restart the pod, or undo the change.",
            );
        }
        for (n, lifted) in configuration.lifted.iter().enumerate() {
            let remedy = "Set the ceiling to what the provider allows you.";
            self.add(
                format!("ceiling_lifted {n}"),
                Level::Warn,
                "A ceiling is lifted",
                format!("{lifted}."),
                remedy,
            );
        }
    }
}
