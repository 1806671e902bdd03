//! Concerns about stored messages that this sidecar does not send, whatever the provider does.

use super::super::view::{Level, SidecarStatus};
use super::{Concerns, plural};
use crate::config::grouped;

impl Concerns {
    pub(super) fn held(&mut self, status: &SidecarStatus) {
        let Some(kept) = &status.kept else { return };
        if kept.unverified > 0 {
            let (n, s) = (grouped(kept.unverified), plural(kept.unverified));
            let detail = format!(
                "{n} stored message{s}: the record in Redis has no valid MAC. tollgate neither sends nor \
                 deletes it."
            );
            let remedy = "Find out who can write to Redis, and whether all sidecars of the account have the \
                          same spool.mac_file (docs/shared-spool.md, Threats). tollgate messages list with \
                          --set listen.control=none --set spool.mac_file= lists those that are not this sidecar's.";
            self.add("unverified", Level::Bad, "Stored messages cannot be trusted", detail, remedy);
        }
        if kept.not_allowed > 0 {
            let (n, s) = (grouped(kept.not_allowed), plural(kept.not_allowed));
            let detail = format!(
                "{n} stored message{s}, of this sidecar or left by stopped ones: topics.allow or [upstream] \
                 does not allow them here."
            );
            let remedy = "Check that a sidecar of the account allows their topics and instances. Otherwise \
                          allow them here (topics.allow), or drop them (tollgate messages drop; those that \
                          others left, with --set listen.control=none).";
            self.add(
                "not_allowed",
                Level::Warn,
                "Stored messages may not be sent from here",
                detail,
                remedy,
            );
        }
    }
}
