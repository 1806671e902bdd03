//! `config/tollgate.toml` is the documentation of every key and its default.

use std::collections::BTreeSet;

use tollgate::config::{Address, Keys, Origin, keys, load};

use super::{owned, read, shown};

const DOCUMENTED: &str = include_str!("../../../config/tollgate.toml");
const PRODUCTION: &str = include_str!("../../../config/production.toml");
/// Keys without a default: the file shows an example.
const EXAMPLES: [&str; 4] =
    ["upstream.endpoint", "upstream.instance_id", "upstream.instances", "keys.uri"];

/// The file with every default switched on: a `#` right before a name or a `[` is one.
fn switched_on() -> String {
    let line = |line: &'static str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
        _ => line,
    };
    DOCUMENTED.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn defaults() -> tollgate::config::Loaded {
    let env = owned(&[
        ("TOLLGATE__UPSTREAM__ENDPOINT", "https://onsmqtt.cn-hangzhou.aliyuncs.com"),
        ("TOLLGATE__UPSTREAM__INSTANCE_ID", "post-cn-0pp12gl0000"),
    ]);
    load(None, env, &[]).unwrap()
}

#[test]
fn every_key_stands_in_the_file_with_its_default() {
    let defaults = defaults();
    let written = read(&switched_on()).unwrap();
    let mut compared = 0;
    for key in keys() {
        let setting = written.settings.iter().find(|setting| setting.key == key);
        let setting = setting.unwrap_or_else(|| panic!("{key} is not in config/tollgate.toml"));
        assert!(matches!(setting.origin, Origin::File(_)), "{key} is not in config/tollgate.toml");
        if !EXAMPLES.contains(&key.as_str()) {
            assert_eq!(setting.value, shown(&defaults, &key), "{key}");
            compared += 1;
        }
    }
    assert_eq!(compared, keys().len() - EXAMPLES.len());
    // The types agree too, not only what is shown.
    let (mut written, defaults) = (written.config, defaults.config);
    written.upstream.instances.clear();
    assert_eq!(format!("{written:?}"), format!("{defaults:?}"));
}

#[test]
fn as_it_is_the_file_changes_no_default() {
    let written = read(DOCUMENTED).unwrap();
    assert_eq!(format!("{:?}", written.config), format!("{:?}", defaults().config));
    let from_file = written.settings.iter().filter(|setting| setting.origin != Origin::Default);
    assert_eq!(from_file.count(), 2, "all but the required keys are commented out");
}

#[test]
fn keys_are_named_once_and_include_the_contract() {
    let keys = keys();
    let set: BTreeSet<_> = keys.iter().map(String::as_str).collect();
    assert_eq!(set.len(), keys.len());
    for key in [
        "listen.publish",
        "listen.telemetry",
        "publish.wait",
        "publish.max_payload",
        "publish.ratelimit_headers",
        "publish.max_waiting",
        "publish.max_connections",
        "publish.max_header",
        "publish.header_timeout",
        "publish.body_timeout",
        "publish.idle_timeout",
        "upstream.endpoint",
        "upstream.instance_id",
        "upstream.instances",
        "upstream.signature",
        "upstream.payload",
        "upstream.connect_timeout",
        "upstream.call_timeout",
        "upstream.idle_timeout",
        "upstream.max_connections",
        "upstream.dns_ttl",
        "upstream.roots",
        "upstream.egress_addresses",
        "keys.source",
        "keys.path",
        "keys.poll",
        "keys.uri",
        "ceilings.account",
        "ceilings.egress_ip",
        "ceilings.retry_share",
        "ceilings.allow_above_published",
        "ceilings.unanswered_min",
        "ceilings.unanswered_max",
        "fleet.url",
        "fleet.account",
        "fleet.egress_group",
        "fleet.expected_sidecars",
        "fleet.username",
        "fleet.password_file",
        "fleet.ca_file",
        "listen.control",
        "retry.batch",
        "retry.base",
        "retry.cap",
        "retry.max_age",
        "retry.unknown",
        "retry.unknown_tries",
        "retry.park",
        "retry.codes",
        "spool.store",
        "spool.path",
        "spool.max_bytes",
        "spool.max_messages",
        "spool.keep_receipts",
        "drain.handoff",
        "idempotency.keep",
        "idempotency.max_keys",
        "topics.allow",
        "billing.currency",
        "billing.price_per_million",
        "billing.plan_tps",
        "billing.time_zone",
        "billing.tiers",
        "billing.budgets",
        "telemetry.log",
        "telemetry.level",
        "telemetry.max_topics",
        "drain.accept_for",
        "drain.handoff",
        "drain.grace",
        "runtime.threads",
    ] {
        assert!(set.contains(key), "{key}");
    }
    assert_eq!(set.len(), 70, "a new key belongs into this list");
}

#[test]
fn the_production_example_is_valid() {
    let config = read(PRODUCTION).unwrap().config;
    assert_eq!(config.listen.publish, [Address::Unix("/run/tollgate/publish.sock".into())]);
    assert!(matches!(config.keys, Keys::File { .. }));
    assert!(config.upstream.endpoint.is_provider() && config.upstream.endpoint.tls);
    assert_eq!(config.ceilings.account, Some(200));
    assert!(!config.ceilings.above_published);
}
