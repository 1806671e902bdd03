//! Defaults, then the file, then the environment, then flags.

use std::time::Duration;

use tollgate::config::{Address, KeySource, KeyUri, Roots, explain, load, warnings};
use tollgate::message::Topic;

use super::{File, LEAST, origin, owned, read, read_with, shown};

const WAIT: &str = "[publish]\nwait = \"2s\"\n";

#[test]
fn later_sources_win_and_say_so() {
    let file = File::new(format!("{LEAST}{WAIT}"));
    let env = owned(&[("TOLLGATE__PUBLISH__WAIT", "3s")]);
    let flags = owned(&[("publish.wait", "4s")]);

    let by_default = read(LEAST).unwrap();
    let by_file = load(Some(&file.path), [], &[]).unwrap();
    let by_env = load(Some(&file.path), env.clone(), &[]).unwrap();
    let by_flag = load(Some(&file.path), env, &flags).unwrap();

    let file_origin = format!("file {}", file.path.display());
    for (loaded, seconds, from) in [
        (&by_default, 5, "default"),
        (&by_file, 2, file_origin.as_str()),
        (&by_env, 3, "environment TOLLGATE__PUBLISH__WAIT"),
        (&by_flag, 4, "flag --set"),
    ] {
        assert_eq!(loaded.config.publish.wait, Duration::from_secs(seconds), "{from}");
        assert_eq!(shown(loaded, "publish.wait"), format!("{seconds}s"));
        assert_eq!(origin(loaded, "publish.wait"), from);
        assert_eq!(origin(loaded, "publish.max_waiting"), "default", "others stay");
        assert!(origin(loaded, "upstream.endpoint").starts_with("file"));
    }
}

/// A manifest's variable does not win over the file without a word.
#[test]
fn a_variable_over_the_file_is_a_warning() {
    let text = format!(
        "{LEAST}[listen]\npublish = \"unix:/run/p.sock\"\n[ceilings]\naccount = 100\n\
         [publish]\nratelimit_headers = false\n[topics]\nallow = [\"A\"]\n"
    );
    let file = File::new(text);
    let overridden = |env: &[(&str, &str)], flags: &[(&str, &str)]| -> Vec<_> {
        let loaded = load(Some(&file.path), owned(env), &owned(flags)).unwrap();
        let shown = explain(&loaded);
        let warnings = loaded.warnings();
        let overridden = warnings.iter().filter(|w| w.problem.contains("has no effect"));
        overridden
            .map(|w| {
                assert!(shown.contains(&w.to_string()));
                w.key
            })
            .collect()
    };
    let other = [
        ("TOLLGATE__LISTEN__PUBLISH", "127.0.0.1:15080"),
        ("TOLLGATE__CEILINGS__ACCOUNT", "50"),
        ("TOLLGATE__TOPICS__ALLOW", "B"),
        ("TOLLGATE__DRAIN__GRACE", "9s"),
    ];
    assert_eq!(overridden(&other, &[]), ["ceilings.account", "listen.publish", "topics.allow"]);
    // The same value, or a flag, which its operator has typed.
    let same = [
        ("TOLLGATE__LISTEN__PUBLISH", "unix:/run/p.sock"),
        ("TOLLGATE__CEILINGS__ACCOUNT", "100"),
        ("TOLLGATE__PUBLISH__RATELIMIT_HEADERS", "false"),
    ];
    assert_eq!(overridden(&same, &[("ceilings.account", "50")]), [""; 0]);
}

#[test]
fn without_a_file_the_environment_is_enough() {
    let env = [
        ("TOLLGATE__UPSTREAM__ENDPOINT", "http://[::1]:9460"),
        ("TOLLGATE__UPSTREAM__INSTANCE_ID", "00123"),
        ("TOLLGATE__UPSTREAM__EGRESS_ADDRESSES", "10.0.0.1, fd00::1"),
        ("TOLLGATE__LISTEN__PUBLISH", "[127.0.0.1:0, \"unix:/run/p.sock\"]"),
        ("TOLLGATE__TOPICS__ALLOW", ""),
        ("TOLLGATE__PUBLISH__RATELIMIT_HEADERS", "false"),
        ("TOLLGATE__PUBLISH__MAX_PAYLOAD", "1024"),
        ("TOLLGATE__CEILINGS__RETRY_SHARE", "1"),
        ("TOLLGATE__CEILINGS__ACCOUNT", " 7\n"),
        ("TOLLGATE__UPSTREAM__ROOTS", "/etc/ca.pem"),
    ];
    let config = load(None, owned(&env), &[]).unwrap().config;
    assert_eq!(config.upstream.endpoint.host, "::1");
    assert_eq!(config.upstream.instance_id.as_deref(), Some("00123"), "an id stays text");
    assert_eq!(config.upstream.egress_addresses.len(), 2);
    let unix = Address::Unix("/run/p.sock".into());
    assert_eq!(config.listen.publish, [Address::Tcp(([127, 0, 0, 1], 0).into()), unix]);
    assert!(config.topics.allow.is_empty());
    assert!(!config.publish.ratelimit_headers);
    assert_eq!(config.publish.max_payload, 1024);
    assert!((config.ceilings.retry_share - 1.0).abs() < f64::EPSILON);
    assert_eq!(config.ceilings.account, Some(7));
    assert_eq!(config.upstream.roots, Roots::File("/etc/ca.pem".into()));
}

#[test]
fn tables_outside_a_file_stand_on_one_line() {
    let env = [
        (
            "TOLLGATE__UPSTREAM__INSTANCES",
            r#"[{ instance_id = "post-b", topics = ["Alarm/*"] }, { instance_id = "post-c", topics = ["A"] }]"#,
        ),
        ("TOLLGATE__RETRY__CODES", r#"{ SomeCode = "refused", Other.Code=retry }"#),
    ];
    let budget = r#"[{ name = "b", messages = 5, period = "day", on_exceed = "refuse" }]"#;
    let loaded = read_with(LEAST, &env, &[("billing.budgets", budget)]).unwrap();
    let config = &loaded.config;
    assert_eq!(shown(&loaded, "upstream.instances"), "2 of them");
    let instance = |topic| config.upstream.instance_for(&Topic::parse(topic).unwrap());
    assert_eq!(instance("Alarm/x").unwrap().to_string(), "post-b");
    assert_eq!(instance("TopicA").unwrap().to_string(), "post-cn-x");
    assert_eq!(config.billing.budgets[0].name, "b");
    let codes = format!("{:?}", config.retry.codes);
    assert!(codes.contains(r#"("SomeCode", Refused), ("Other.Code", Failed)"#), "{codes}");

    for wrong in ["[{ instance_id = ", "post-b", "1"] {
        let env = [("TOLLGATE__UPSTREAM__INSTANCES", wrong)];
        let told = read_with(LEAST, &env, &[]).unwrap_err().to_string();
        assert!(told.contains("must be a list of tables"), "{told}");
    }
}

#[test]
fn ids_that_look_like_something_else_stay_text() {
    for id in ["123456", "00123", "1e3", "true", "nan", "0x10"] {
        let env = [("TOLLGATE__UPSTREAM__INSTANCE_ID", id)];
        let config = read_with(LEAST, &env, &[]).unwrap().config;
        assert_eq!(config.upstream.instance_id.as_deref(), Some(id));
    }
}

#[test]
fn what_kubernetes_injects_for_a_service_of_that_name_is_not_ours() {
    let env = [
        ("TOLLGATE_PORT", "tcp://10.0.0.1:8080"),
        ("TOLLGATE_PORT_8080_TCP_PROTO", "tcp"),
        ("TOLLGATE_SERVICE_HOST", "10.0.0.1"),
        ("XTOLLGATE__PUBLISH__WAIT", "nonsense"),
    ];
    read_with(LEAST, &env, &[]).unwrap();
}

#[test]
fn ceilings_follow_the_endpoint() {
    let provider =
        LEAST.replace("http://127.0.0.1:9460", "https://onsmqtt.cn-beijing.aliyuncs.com");
    // Whether each is warned of, as keys.
    for (file, account, egress_ip, warned) in [
        (LEAST.to_owned(), Some(1_000), None, &[][..]),
        (format!("{LEAST}[ceilings]\naccount = \"none\"\n"), None, None, &["ceilings.account"]),
        (LEAST.replace("127.0.0.1:9460", "mqtt.example.com"), Some(1_000), None, &[]),
        (LEAST.replace("127.0.0.1:9460", "10.0.0.7"), Some(1_000), None, &[]),
        (
            format!("{LEAST}[ceilings]\naccount = 50000\n"),
            Some(50_000),
            None,
            &["ceilings.account"],
        ),
        (provider.clone(), Some(1_000), Some(300), &[]),
        (format!("{provider}[ceilings]\naccount = 10\n"), Some(10), Some(300), &[]),
        (
            format!("{provider}[ceilings]\naccount = 1001\nallow_above_published = true\n"),
            Some(1_001),
            Some(300),
            &["ceilings.account"],
        ),
        (
            format!("{provider}[ceilings]\negress_ip = \"none\"\nallow_above_published = true\n"),
            Some(1_000),
            None,
            &["ceilings.egress_ip"],
        ),
        (
            format!("{provider}[ceilings]\naccount = 1000\nallow_above_published = true\n"),
            Some(1_000),
            Some(300),
            &[],
        ),
    ] {
        let config = read(&file).unwrap().config;
        let found = (config.ceilings.account, config.ceilings.egress_ip);
        assert_eq!(found, (account, egress_ip), "{file}");
        let keys: Vec<_> = warnings(&config).into_iter().map(|warning| warning.key).collect();
        assert_eq!(keys, warned, "{file}");
    }
}

#[test]
fn each_source_of_keys() {
    let uri_variable = ("ALIBABA_CLOUD_CREDENTIALS_URI", "http://h/variable");
    let uri = |uri: &str| KeySource::Uri(KeyUri::plain(uri));
    let file = KeySource::File { path: "/k".into(), poll: Duration::from_secs(2) };
    for (keys, env, expected) in [
        ("", vec![], KeySource::Env),
        ("source = \"env\"\nuri = \"http://h\"\npath = \"x\"", vec![], KeySource::Env),
        ("source = \"file\"\npath = \"/k\"", vec![], file),
        ("source = \"uri\"\nuri = \"http://h/file\"", vec![uri_variable], uri("http://h/file")),
        ("source = \"uri\"", vec![uri_variable], uri("http://h/variable")),
        // Someone else's variable is nobody's mistake.
        ("", vec![("ALIBABA_CLOUD_CREDENTIALS_URI", "not a uri")], KeySource::Env),
    ] {
        let loaded = read_with(&format!("{LEAST}[keys]\n{keys}\n"), &env, &[]).unwrap();
        assert_eq!(loaded.config.keys.source, expected);
    }
    let env = [uri_variable, ("TOLLGATE__KEYS__SOURCE", "uri")];
    let loaded = read_with(LEAST, &env, &[]).unwrap();
    assert_eq!(origin(&loaded, "keys.uri"), "environment ALIBABA_CLOUD_CREDENTIALS_URI");
}

#[test]
fn an_unsigned_spool_on_another_machine_is_warned_of() {
    let fleet = "[fleet]\nurl = \"rediss://redis.infra\"\n";
    let near = "[fleet]\nurl = \"redis://localhost\"\n";
    for (file, warned) in [
        (format!("{fleet}[spool]\nstore = \"redis\"\n"), &["spool.mac_file"][..]),
        (format!("{fleet}[spool]\nstore = \"redis\"\nmac_file = \"/run/keys\"\n"), &[]),
        (
            format!("{fleet}[spool]\nstore = \"redis\"\nmac_file = \"/k\"\nmac_required = false\n"),
            &["spool.mac_required"],
        ),
        (format!("{near}[spool]\nstore = \"redis\"\n"), &[]),
        (format!("{near}[spool]\nstore = \"redis\"\nmac_required = false\n"), &[]),
        (fleet.to_owned(), &[]),
    ] {
        let config = read(&format!("{LEAST}{file}")).unwrap().config;
        let keys: Vec<_> = warnings(&config).into_iter().map(|warning| warning.key).collect();
        assert_eq!(keys, warned, "{file}");
    }
}

#[test]
fn rules_can_stand_in_for_the_instance() {
    let file = "[upstream]\nendpoint = \"h\"\n\
        [[upstream.instances]]\ninstance_id = \"one\"\ntopics = [\"Alarm/*\"]\n\
        [[upstream.instances]]\ninstance_id = \"two\"\ntopics = [\"*\"]\n";
    let upstream = read(file).unwrap().config.upstream;
    assert_eq!(upstream.instance_id, None);
    let of = |topic| upstream.instance_for(&Topic::parse(topic).unwrap());
    assert_eq!(of("Alarm/fire").as_deref(), Some("one"));
    assert_eq!(of("Other").as_deref(), Some("two"));
}
