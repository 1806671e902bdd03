//! Concerns about the spool and what it holds.

use jiff::SignedDuration;

use super::{Concerns, NEAR_CEILING, NEARLY, percent, plural, span};
use crate::config::grouped;
use crate::telemetry::view::{Level, SidecarStatus};

/// Stored messages get older than this only during an outage.
const OLD: SignedDuration = SignedDuration::from_mins(5);
/// For so long dropped dead letters are a concern, as for the alert `TollgateDeadLettersDropped`.
const DROPPED_FOR_ROOM: SignedDuration = SignedDuration::from_hours(1);

impl Concerns {
    pub(super) fn spool(&mut self, status: &SidecarStatus) {
        let Some(kept) = &status.kept else { return };
        if let Some(failure) = &kept.failure {
            let detail = format!(
                "The error: {failure}. Messages that are not delivered at once are refused."
            );
            let title = "The spool cannot be written";
            let remedy = if kept.durability.starts_with("redis") {
                "Check that the Redis of fleet.url runs, is reachable and has memory. tollgate retries."
            } else {
                "Free space on the disk of spool.path, or repair it. tollgate retries by itself."
            };
            self.add("spool", Level::Bad, title, detail, remedy);
        }
        if kept.full >= NEARLY {
            let full = kept.full >= NEAR_CEILING;
            let level = if full { Level::Bad } else { Level::Warn };
            let detail = format!(
                "{} is used. When it is full, messages that are not delivered at once are refused (503).",
                percent(kept.full)
            );
            let remedy = "Drop or replay dead letters (tollgate messages), or raise spool.max_bytes \
                          and spool.max_messages.";
            self.add("spool_full", level, "The spool is nearly full", detail, remedy);
        }
        let ago = kept.dead_dropped_for_room.map(|at| status.now.duration_since(at));
        if let Some(ago) = ago.filter(|ago| *ago < DROPPED_FOR_ROOM) {
            let detail = format!(
                "Dead letters take more than half of the spool, and new messages needed the room, last \
                 {} ago. What was dropped cannot be replayed; the audit log has the ids.",
                span(ago)
            );
            let remedy = "Replay or drop dead letters (tollgate messages), stop what is refused, or \
                          raise spool.max_bytes and spool.max_messages.";
            self.add(
                "dead_letters_dropped",
                Level::Bad,
                "Dead letters are dropped for room",
                detail,
                remedy,
            );
        }
    }

    pub(super) fn backlog(&mut self, status: &SidecarStatus) {
        if let Some(kept) = &status.kept {
            let age = kept.oldest.map(|at| status.now.duration_since(at));
            if let Some(age) = age.filter(|age| *age > OLD) {
                let (n, s) = (grouped(kept.queued), plural(kept.queued));
                let detail = format!("{n} message{s}, the oldest was accepted {} ago.", span(age));
                let remedy = "Check which topics are paused, and why. After retry.max_age messages \
                              become dead letters.";
                self.add("backlog", Level::Warn, "Stored messages are old", detail, remedy);
            }
            if kept.dead > 0 {
                let title = if kept.dead == 1 {
                    "1 dead letter".to_owned()
                } else {
                    format!("{} dead letters", grouped(kept.dead))
                };
                let detail = "Stored, but not sent again: refused, too old, or of unknown outcome.";
                let remedy = "List them (tollgate messages list --state dead), then replay or drop \
                              them.";
                self.add("dead_letters", Level::Warn, title, detail.to_owned(), remedy);
            }
        }
    }
}
