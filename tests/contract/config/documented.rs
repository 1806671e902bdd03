//! `config/tollgate.toml` is the documentation of every key and its default.

use std::collections::BTreeSet;

use tollgate::config::{Address, KeySource, Origin, keys, load, reference, warnings};

use super::{owned, read, shown};

const DOCUMENTED: &str = include_str!("../../../config/tollgate.toml");
const PRODUCTION: &str = include_str!("../../../config/production.toml");
/// Keys without a default: the file shows an example.
const EXAMPLES: [&str; 20] = [
    "upstream.endpoint",
    "upstream.instance_id",
    "upstream.proxy",
    "keys.uri",
    "keys.uri_token_file",
    "keys.uri_ca_file",
    "keys.oidc_role_arn",
    "keys.oidc_provider_arn",
    "keys.oidc_token_file",
    "keys.role_arn",
    "keys.external_id",
    "keys.policy",
    "keys.sts_region",
    "keys.sts_endpoint",
    "keys.ecs_role",
    "keys.cli_profile",
    "fleet.region",
    "keyring.certificate",
    "keyring.private_key",
    "keyring.role_arn",
];

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
    let mut written = read(&switched_on()).unwrap();
    // The only keys without a default that have an effect by themselves.
    assert!(written.config.upstream.proxy.take().is_some());
    assert!(written.config.keyring.take().is_some());
    let mut compared = 0;
    for key in keys() {
        let setting = written.settings.iter().find(|setting| setting.key == key);
        let setting = setting.unwrap_or_else(|| panic!("{key} is not in config/tollgate.toml"));
        assert!(matches!(setting.origin, Origin::File(_)), "{key} is not in config/tollgate.toml");
        if !EXAMPLES.contains(&key) {
            assert_eq!(setting.value, shown(&defaults, key), "{key}");
            compared += 1;
        }
    }
    assert_eq!(compared, keys().len() - EXAMPLES.len());
    // The types agree too, not only what is shown.
    assert_eq!(format!("{:?}", written.config), format!("{:?}", defaults.config));
}

#[test]
fn as_it_is_the_file_changes_no_default() {
    let written = read(DOCUMENTED).unwrap();
    assert_eq!(format!("{:?}", written.config), format!("{:?}", defaults().config));
    let from_file = written.settings.iter().filter(|setting| setting.origin != Origin::Default);
    assert_eq!(from_file.count(), 2, "all but the required keys are commented out");
}

#[test]
fn the_file_is_generated_from_the_table() {
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/tollgate.toml");
        std::fs::write(path, reference()).unwrap();
    } else {
        assert!(
            reference() == DOCUMENTED,
            "run UPDATE=1 cargo test --all-features --test contract config"
        );
    }
}

#[test]
fn every_key_is_one_row() {
    let read: Vec<_> = defaults().settings.into_iter().map(|setting| setting.key).collect();
    assert_eq!(read, keys());
    let names: BTreeSet<_> = keys().into_iter().collect();
    assert_eq!(names.len(), keys().len());
}

#[test]
fn the_production_example_is_valid() {
    let config = read(PRODUCTION).unwrap().config;
    assert_eq!(config.listen.publish, [Address::Unix("/run/tollgate/publish.sock".into())]);
    assert!(matches!(config.keys.source, KeySource::File { .. }));
    assert!(config.upstream.endpoint.is_provider() && config.upstream.endpoint.tls);
    assert_eq!(config.ceilings.account, Some(200));
    assert_eq!(warnings(&config), []);
}
