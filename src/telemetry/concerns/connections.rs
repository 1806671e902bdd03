//! A listener whose connections are nearly all in use.

use super::{Concerns, NEARLY, share};
use crate::config::grouped;
use crate::telemetry::view::{Level, SidecarStatus};

impl Concerns {
    pub(super) fn connections(&mut self, status: &SidecarStatus) {
        for usage in &status.connections {
            if share(usage.open as f64, Some(usage.max as f64)) < NEARLY {
                continue;
            }
            let (open, max) = (grouped(usage.open as u64), grouped(usage.max as u64));
            let detail = format!(
                "{open} of {max} are open. When all are, a new one takes the place of the one without a \
                 request for longest, and waits if all have requests in progress."
            );
            let remedy = match usage.listener {
                "publish" => {
                    "Let callers reuse connections and close those that they do not use, or raise \
                     publish.max_connections (and the limit of open files)."
                }
                _ => "Find the client that opens so many (`ss -tnp` in the pod), and stop it.",
            };
            let title = format!("Connections to {} are nearly used up", usage.listener);
            self.add(format!("connections {}", usage.listener), Level::Warn, title, detail, remedy);
        }
    }
}
