//! Which changes a running process takes up, and which wait for a restart.

use std::time::Duration;

use tollgate::config::Config;

use super::{LEAST, read};

/// A process that started with one file, after a reload of the other.
fn reloaded(started: &str, newer: &str) -> (Option<Config>, Vec<String>) {
    let file = |lines: &str| read(&format!("{LEAST}{lines}\n")).unwrap();
    file(started).reloaded(&file(newer))
}

fn taken_up(started: &str, newer: &str) -> (Config, Vec<String>) {
    let (config, waiting) = reloaded(started, newer);
    (config.unwrap(), waiting)
}

#[test]
fn live_keys_change_and_others_wait() {
    let newer = "[publish]\nwait = \"2s\"\nmax_waiting = 9\n[topics]\nallow = [\"A\"]";
    let (config, waiting) = taken_up("", newer);
    assert_eq!(config.publish.wait, Duration::from_secs(2));
    assert_eq!(config.topics.allow.len(), 1);
    assert_eq!(config.publish.max_waiting, 4096);
    assert_eq!(waiting, ["publish.max_waiting"]);
    let (config, waiting) = taken_up(newer, "[publish]\nmax_waiting = 9");
    assert_eq!(config.publish.wait, Duration::from_secs(5), "back to its default");
    assert!(config.topics.allow.is_empty() && waiting.is_empty());
    let rule = "[[topics.rules]]\ntopics = [\"A\"]\nttl = \"30s\"";
    let (config, waiting) = taken_up("", rule);
    assert_eq!((config.topics.rules[0].ttl, waiting.len()), (Some(Duration::from_secs(30)), 0));
}

#[test]
fn a_change_inside_a_table_waits_and_is_named() {
    let budget = |messages: u32| {
        format!("[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"\nmessages = {messages}")
    };
    let (_, waiting) = taken_up(&budget(10), &budget(20));
    assert_eq!(waiting, ["billing.budgets"]);
    let (_, waiting) = taken_up(&budget(10), &budget(10));
    assert!(waiting.is_empty());
}

/// The fleet is still there, so the ceiling that it shares must be, too. Nothing is taken up then, and
/// so what an earlier reload has set stays.
#[test]
fn where_the_mixture_is_invalid_everything_waits() {
    let fleet = "[ceilings]\naccount = 9\n[fleet]\nurl = \"redis://h\"";
    let (config, waiting) =
        reloaded(fleet, "[publish]\nwait = \"2s\"\n[ceilings]\naccount = \"none\"");
    assert!(config.is_none());
    assert_eq!(waiting, ["publish.wait", "ceilings.account", "fleet.url"]);
}

/// Only what is shown of a value is masked: a new password is a change.
#[test]
fn a_changed_password_waits() {
    let proxy = |password: &str| format!("proxy = \"http://user:{password}@proxy:3128\"");
    let (_, waiting) = taken_up(&proxy("s3cret-1"), &proxy("s3cret-2"));
    assert_eq!(waiting, ["upstream.proxy"]);
    let (_, waiting) = taken_up(&proxy("s3cret-1"), &proxy("s3cret-1"));
    assert!(waiting.is_empty());
}

/// What is wrong with a value is said without its password, also where it is no URI.
#[test]
fn no_password_is_in_an_error() {
    for line in [
        "proxy = \"user:s3cret@proxy:3128\"",
        "proxy = \"http:/user:s3cret@proxy\"",
        "[keys]\nsource = \"uri\"\nuri = \"user:s3cret@host/key\"",
        "[fleet]\nurl = \"user:s3cret@redis:6379\"",
    ] {
        let errors = read(&format!("{LEAST}{line}\n")).unwrap_err().to_string();
        assert!(!errors.contains("s3cret"), "{errors}");
    }
}
