//! Applies changes of the configuration file while `tollgate serve` runs.

use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::logging::Log;
use crate::config::{ConfigFile, Flags, Loaded};
use crate::sidecar::Sidecar;

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(2);
/// A change is applied when looks agree for this long: an editor or a script may write a file in
/// parts, and half of one can be valid. Its missing sections would then fall back to their defaults.
const SETTLED: Duration = Duration::from_secs(4);

/// Applies changes until it is dropped: those of the file, and everything at SIGHUP. Contents are
/// compared: a `ConfigMap` changes by a swap of links that fools file watchers.
pub(super) async fn apply_changes(
    flags: &Flags,
    started: &Loaded,
    file: Option<ConfigFile>,
    sidecar: &Sidecar,
    mut hangup: Signal,
    log: &Log,
) {
    // That of the start: another one, or none, would be another configuration.
    let watched = file.clone().filter(ConfigFile::can_change);
    let mut changes = Changes::new(file.clone());
    let mut polls = interval(POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_asked = tokio::select! {
            _ = hangup.recv() => true,
            _ = polls.tick() => false,
        };
        if is_asked {
            changes.ask();
        }
        let file = match watched.clone() {
            Some(watched) => look(watched).await,
            None => file.clone(),
        };
        if changes.look(file.as_ref(), Instant::now()) {
            apply(flags.load_file(file.as_ref()), started, sidecar, log);
        }
    }
}

fn apply(
    loaded: Result<Loaded, impl std::fmt::Display>,
    started: &Loaded,
    sidecar: &Sidecar,
    log: &Log,
) {
    let newer = match loaded {
        Ok(newer) => newer,
        Err(errors) => {
            sidecar.configuration().refused(&errors.to_string());
            tracing::error!(%errors, "the new configuration is invalid: nothing has changed");
            return;
        }
    };
    let (config, pending) = started.reloaded(&newer);
    if let Some(config) = config {
        sidecar.reload(&config);
        log.set_level(&config.telemetry.level);
        tracing::info!(
            account = config.ceilings.account,
            egress_ip = config.ceilings.egress_ip,
            "configuration reloaded"
        );
    }
    if !pending.is_empty() {
        tracing::warn!(keys = pending.join(", "), "these changes need a restart");
    }
    sidecar.configuration().read(newer.hash(), pending);
}

/// One look, on a thread where a slow disk delays nothing else.
async fn look(file: ConfigFile) -> Option<ConfigFile> {
    let before = file.clone();
    let look = tokio::task::spawn_blocking(move || file.read_again()).await;
    // It fails only when the process ends.
    Some(look.unwrap_or(before))
}

/// Decides which look at the file is to be applied.
#[derive(Debug)]
struct Changes {
    /// What was applied, or found to be invalid.
    current: Option<ConfigFile>,
    /// The latest look, and since when all looks agree with it.
    latest: Option<(Option<ConfigFile>, Instant)>,
    /// Whether SIGHUP asks to apply the file although it may not have changed.
    is_asked: bool,
}

impl Changes {
    fn new(current: Option<ConfigFile>) -> Self {
        Self { current, latest: None, is_asked: false }
    }

    fn ask(&mut self) {
        self.is_asked = true;
    }

    /// Takes the look at `now`; whether it is to be applied.
    fn look(&mut self, file: Option<&ConfigFile>, now: Instant) -> bool {
        let since = match &self.latest {
            Some((latest, since)) if latest.as_ref() == file => *since,
            _ => now,
        };
        self.latest = Some((file.cloned(), since));
        let is_changed = file != self.current.as_ref();
        // Without a file, there is nothing that could be half written.
        let is_settled = file.is_none() || now.duration_since(since) >= SETTLED;
        let is_due = is_settled && (is_changed || self.is_asked);
        if is_due {
            self.current = file.cloned();
            self.is_asked = false;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies the looks, one a poll; which of them (from 0) were applied.
    fn applied(start: &str, looks: &[&str], asked_before: Option<usize>) -> Vec<usize> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tollgate.toml");
        let file = |text: &str| {
            std::fs::remove_file(&path).ok();
            if text != "missing" {
                std::fs::write(&path, text).unwrap();
            }
            ConfigFile::read(&path)
        };
        let mut changes = Changes::new(Some(file(start)));
        let begin = Instant::now();
        let mut applied = Vec::new();
        for (number, text) in (0..).zip(looks) {
            if asked_before == Some(number) {
                changes.ask();
            }
            if changes.look(Some(&file(text)), begin + POLL * u32::try_from(number).unwrap()) {
                applied.push(number);
            }
        }
        applied
    }

    #[test]
    fn a_change_is_applied_once_it_has_settled() {
        assert_eq!(applied("a", &["a", "b", "b", "b", "b", "b"], None), [3]);
    }

    /// Written in parts, emptied first, or swapped with a moment without a file.
    #[test]
    fn a_file_that_still_changes_is_not_applied() {
        assert_eq!(applied("whole", &["", "who", "who", "whole2", "whole2", "whole2"], None), [5]);
        assert_eq!(applied("a", &["missing", "b", "b", "c", "c", "c"], None), [5]);
        assert_eq!(applied("a", &["b", "a", "b", "a", "a", "a", "a"], None), [0usize; 0]);
    }

    /// A file that stays away is an error that the operator should see, once.
    #[test]
    fn a_file_that_stays_away_is_found_wanting() {
        assert_eq!(applied("a", &["missing", "missing", "missing", "missing"], None), [2]);
        assert_eq!(applied("a", &["missing", "missing", "missing", "a", "a", "a"], None), [2, 5]);
    }

    #[test]
    fn a_signal_applies_what_has_not_changed_and_still_waits_for_it_to_settle() {
        assert_eq!(applied("a", &["a", "a", "a", "a"], Some(3)), [3]);
        assert_eq!(applied("a", &["a", "a", "a", "b", "b", "b"], Some(3)), [5]);
    }
}
