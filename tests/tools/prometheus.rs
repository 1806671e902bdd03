//! A real Prometheus scrapes a real sidecar: what it counts is what the provider counted, and all
//! that `deploy/` and `docs/runbooks.md` ask for is there.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support;
use crate::support::callers;
use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Serve};
use crate::support::prometheus::{
    Prometheus, alerts, commands, dashboard, file, promtool, replaced,
};
use crate::support::script::{self, Script};
use crate::support::until;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;
use tollgate::answer::{AccessDenied, Answer, Code, TABLE, TransportError, Verdict};

/// A price, a plan and a budget, so that all that is counted in money is there.
const BILLING: &str = "[billing]\nprice_per_million = 250000\nplan_tps = 100\n\
                       [[billing.budgets]]\nname = \"all\"\nmessages = 100000\nperiod = \"day\"\n";

/// Topics whose calls the provider answers with these codes.
const TROUBLES: [(&str, &str); 4] = [
    ("Failing", "SendMessageFailed"),
    ("Throttled", "SystemOverFlow"),
    ("Denied", "Forbidden.RAM"),
    ("Refused", "ParameterCheckFailed"),
];

/// A provider, a sidecar with all that it can have, and a Prometheus that watches it.
struct Watched {
    emulator: Emulator,
    serve: Serve,
    prometheus: Prometheus,
    _keys: Script,
    _spool: tempfile::TempDir,
}

impl Watched {
    async fn start() -> Self {
        let emulator = Emulator::start(&["--account-qps", "0", "--egress-ip-qps", "0"]).await;
        let spool = tempfile::tempdir().unwrap();
        let expires = Timestamp::now() + SignedDuration::from_hours(6);
        let key = json!({"Code": "Success", "AccessKeyId": "testid",
            "AccessKeySecret": "testsecret", "Expiration": expires.to_string()});
        let keys = Script::start([script::json(200, &[], &key.to_string())]).await;
        let (path, url) = (spool.path().display().to_string(), emulator.url());
        let settings = [
            ("upstream.endpoint", url.as_str()),
            ("spool.store", "disk"),
            ("spool.path", &path),
            ("keys.source", "uri"),
            ("keys.uri", &keys.url),
            ("ceilings.account", "1000"),
            ("ceilings.egress_ip", "900"),
        ];
        let billing = spool.path().join("billing.toml");
        std::fs::write(&billing, BILLING).unwrap();
        let config = ["--config", billing.to_str().unwrap()];
        let serve = Serve::start_with(&config, &settings, &[]).await;
        until("it has a key", async || get(&serve.telemetry, "/startupz").await.status == 200)
            .await;
        let config = replaced(&file("try.yaml"), "127.0.0.1:9464", &serve.telemetry);
        let prometheus = Prometheus::start(&config).await;
        Self { emulator, serve, prometheus, _keys: keys, _spool: spool }
    }

    /// Many callers, and some topics in trouble. Returns how many requests were answered.
    async fn load(&self) -> usize {
        let fault = |(topic, code)| json!({"topic": topic, "code": code});
        let mut faults: Vec<_> = TROUBLES.map(fault).into();
        faults.push(json!({"topic": "TopicA", "code": "InternalError", "probability": 0.1}));
        let faults = Value::from(faults).to_string();
        let set = post(&self.emulator.address, "/_emulator/faults", &[], faults.as_bytes()).await;
        assert_eq!(set.status, 200, "{}", set.text());
        // A rate does not see what a series begins with.
        let first = post(&self.serve.publish, "/publish/TopicA", &[], b"first").await;
        assert!([200, 202].contains(&first.status), "{}", first.text());
        self.prometheus
            .reaches("sum(tollgate_publish_requests_total{topic=\"TopicA\"})", 1.0)
            .await;
        let until = Instant::now() + Duration::from_secs(3);
        let answers = callers::run(&self.serve.publish, 20, until).await;
        let mut answered = 1 + answers.len();
        for topic in ["TopicB", "TopicC/sub"].into_iter().chain(TROUBLES.map(|(topic, _)| topic)) {
            for _ in 0..3 {
                let later = [("prefer", "respond-async")];
                let path = format!("/publish/{topic}");
                let answer = post(&self.serve.publish, &path, &later, b"hello").await;
                assert_eq!(answer.status, 202, "{topic}: {}", answer.text());
                answered += 1;
            }
        }
        // Each trouble is to be seen by Prometheus before it ends.
        for (_, code) in TROUBLES {
            let seen = format!("sum(tollgate_upstream_calls_total{{code=\"{code}\"}})");
            self.prometheus.reaches(&seen, 1.0).await;
        }
        let set = post(&self.emulator.address, "/_emulator/faults", &[], b"[]").await;
        assert_eq!(set.status, 200);
        until_delivered(&self.serve.telemetry).await;
        answered
    }

    /// Waits for a scrape that began after this was called, and a few before it.
    async fn scraped(&self) {
        let now = Timestamp::now().as_millisecond() as f64 / 1e3;
        self.prometheus.reaches("min(timestamp(up{job=\"tollgate\"}))", now).await;
        self.prometheus.reaches("min(count_over_time(up{job=\"tollgate\"}[1m]))", 4.0).await;
    }
}

async fn until_delivered(telemetry: &str) {
    until("nothing is queued any more", async || {
        let metrics = get(telemetry, "/metrics").await.text();
        series(&metrics, "tollgate_spool_messages{state=\"queued\"}") < 0.5
    })
    .await;
}

fn is(seen: f64, wanted: &Value, what: &str) {
    let wanted = wanted.as_f64().unwrap();
    assert!((seen - wanted).abs() < 0.5, "{what}: Prometheus has {seen}, and it was {wanted}");
}

#[tokio::test]
async fn prometheus_counts_what_the_provider_counts() {
    let watched = Watched::start().await;
    let answered = watched.load().await;
    watched.scraped().await;
    let (prometheus, report) = (&watched.prometheus, watched.emulator.report().await);
    assert!(report["accepted"].as_u64().unwrap() > 100, "{report}");

    let billable = "sum(tollgate_billable_messages_total)";
    is(prometheus.one(billable).await, &report["accepted"], billable);
    let calls = "sum(tollgate_upstream_calls_total)";
    is(prometheus.one(calls).await, &report["calls"], calls);
    let by_code =
        prometheus.ask("sum by (code) (tollgate_upstream_calls_total) > 0").await.unwrap();
    let mut by_code: BTreeMap<_, _> =
        by_code.into_iter().map(|(mut l, n)| (l.remove("code").unwrap(), n)).collect();
    is(by_code.remove("OK").unwrap(), &report["accepted"], "OK");
    let refused = report["refused"].as_object().unwrap();
    assert_eq!(by_code.keys().collect::<Vec<_>>(), refused.keys().collect::<Vec<_>>());
    for (code, n) in by_code {
        is(n, &refused[&code], &code);
    }
    let requests = "sum(tollgate_publish_requests_total)";
    is(prometheus.one(requests).await, &json!(answered), requests);

    // The label `instance` is still the provider's, and the sidecar is told by its pod.
    let mine = format!(
        "sum(tollgate_billable_messages_total{{instance=\"{}\",pod=\"{}\",service=\"here\"}})",
        support::INSTANCE,
        watched.serve.telemetry
    );
    is(prometheus.one(&mine).await, &report["accepted"], &mine);
    let room = "sum(tollgate_spool_max_bytes) / 1024 / 1024";
    is(prometheus.one(room).await, &json!(256), room);
    is(prometheus.one("sum(tollgate_spool_max_messages)").await, &json!(1_000_000), "messages");
    prometheus.reaches("instance:tollgate_billable_messages:rate1m", 1.0).await;
    prometheus.reaches("count(ALERTS{alertname=\"TollgateDeadLetters\"})", 1.0).await;
}

/// Names in an expression that are metrics of ours, of the process or of a recording rule.
fn names(expression: &str) -> BTreeSet<String> {
    let outside = expression.split('"').step_by(2);
    let word = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
    let words = outside.flat_map(|part| part.split(|c| !word(c)));
    let ours = |w: &&str| {
        let rule = w.contains(':') && w.starts_with(|c: char| c.is_ascii_lowercase());
        w.starts_with("tollgate_") || w.starts_with("process_") || rule
    };
    words.filter(ours).map(str::to_owned).collect()
}

#[tokio::test]
async fn all_that_is_asked_for_is_there() {
    let watched = Watched::start().await;
    watched.load().await;
    watched.scraped().await;
    let metrics = get(&watched.serve.telemetry, "/metrics").await.text();
    let (lints_pass, lints) = promtool(&["check", "metrics"], &metrics).await;
    assert!(lints_pass && lints.trim().is_empty(), "{lints}");

    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    let mut known: BTreeSet<_> =
        samples.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect();
    let rules = watched.prometheus.rules().await;
    let text = |rule: &Value, key: &str| rule[key].as_str().unwrap_or_default().to_owned();
    known.extend(rules.iter().filter(|r| r["type"] == "recording").map(|r| text(r, "name")));

    let (_, mut queries) = dashboard();
    queries.extend(rules.iter().map(|rule| (text(rule, "name"), text(rule, "query"))));
    let asked = commands().into_iter().filter_map(|c| Some(c.strip_prefix("promql> ")?.to_owned()));
    queries.extend(asked.map(|query| ("a runbook".to_owned(), query)));
    assert!(queries.len() > 100, "only {} queries were found", queries.len());
    let alerts = alerts();
    until("each rule was evaluated without an error", async || {
        let rules = watched.prometheus.rules().await;
        let often = |rule: &&Value| !text(rule, "name").contains(":tollgate_spend:");
        rules.iter().filter(often).all(|rule| rule["health"] == "ok")
    })
    .await;
    for (from, query) in queries {
        let missing: Vec<_> = names(&query).into_iter().filter(|n| !known.contains(n)).collect();
        assert!(missing.is_empty(), "{from} asks for {missing:?}, which nobody has:\n{query}");
        let ask = async || {
            let answer = watched.prometheus.ask(&query).await;
            answer.unwrap_or_else(|error| panic!("{from}: {error}\n{query}"))
        };
        // Every trouble was there, so what shows nothing asks for the wrong labels; but alerts are
        // to be quiet. A rule of a rule is there a moment after what it is made of.
        let made_of_it = query.contains(":tollgate_spend:") || query.contains("plan_used:");
        if made_of_it || alerts.contains(&from) {
            ask().await;
        } else {
            let shown = format!("{from} shows something: {query}");
            until(&shown, async || !ask().await.is_empty()).await;
        }
    }
}

#[test]
fn names_are_found() {
    let query = "sum by (topic) (rate(tollgate_a_total{x=\"tollgate_b\"}[1d:1h])) / on (a) c:d:e5m \
                 - process_x * time() > up";
    let found: Vec<_> = names(query).into_iter().collect();
    assert_eq!(found, ["c:d:e5m", "process_x", "tollgate_a_total"]);
}

/// The pods' configuration, with what Kubernetes would say of them in a file.
#[tokio::test]
async fn pods_are_found() {
    let metrics = Emulator::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let pod = |name: &str, port: &str, phase: &str, account: Option<&str>| {
        let mut labels = json!({
            "__meta_kubernetes_namespace": "shop",
            "__meta_kubernetes_pod_name": name,
            "__meta_kubernetes_pod_phase": phase,
            "__meta_kubernetes_pod_container_port_number": port,
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": "orders",
        });
        if let Some(account) = account {
            labels["__meta_kubernetes_pod_label_tollgate_account"] = account.into();
            labels["__meta_kubernetes_pod_label_tollgate_region"] = "cn-hangzhou".into();
        }
        json!({"targets": [metrics.address], "labels": labels})
    };
    let pods = json!([
        pod("a", "9464", "Running", None),
        pod("b", "9464", "Running", Some("second")),
        pod("c", "8080", "Running", None),
        pod("d", "9464", "Succeeded", None),
    ]);
    let list = folder.path().join("pods.json");
    std::fs::write(&list, pods.to_string()).unwrap();
    let kubernetes = "    kubernetes_sd_configs:\n      - role: pod\n";
    let files = format!("    file_sd_configs:\n      - files: [\"{}\"]\n", list.display());
    let prometheus = Prometheus::start(&replaced(&file("scrape.yaml"), kubernetes, &files)).await;
    prometheus.reaches("count(up)", 2.0).await;
    let up = "sum by (job, cluster, namespace, pod, service, account, region) (up)";
    let up = prometheus.ask(up).await.unwrap();
    let labels: BTreeSet<_> = up.into_iter().map(|(l, _)| l).collect();
    let wanted = |pod: &str, account: &str, region: Option<&str>| {
        let labels = [("job", "tollgate"), ("namespace", "shop"), ("service", "orders")];
        let labels = labels.into_iter().chain([("pod", pod), ("account", account)]);
        let labels = labels.chain([("cluster", "default")]);
        let labels = labels.chain(region.map(|region| ("region", region)));
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let wanted = [wanted("a", "default", None), wanted("b", "second", Some("cn-hangzhou"))];
    assert_eq!(labels, wanted.into());
}

/// Provider codes in rules are those of the one table that knows them.
#[tokio::test]
async fn codes_mean_in_rules_what_they_mean_in_the_table() {
    let mut means = BTreeMap::new();
    let mut add = |code: String, verdict: &Verdict| {
        let rule = match verdict {
            Verdict::Throttled { .. } => Some("throttled"),
            Verdict::Denied(_) => Some("barred"),
            Verdict::Failed | Verdict::Unknown => Some("failed"),
            Verdict::Delivered | Verdict::Refused => None,
        };
        means.insert(code, rule);
    };
    for row in TABLE {
        let code = match row.code {
            Code::Is(code) => code.to_owned(),
            Code::Begins(start) => format!("{start}.More"),
            Code::Has(part) => format!("Some.{part}.More"),
        };
        // A nonce that was used is a call of ours that arrived: no failure of the provider.
        if code != "SignatureNonceUsed" {
            add(code, &row.means);
        }
    }
    for status in [204, 302, 400, 401, 403, 404, 405, 407, 408, 418, 429, 500, 502, 503, 504] {
        let answer = Answer::read(status, &HeaderMap::new(), b"");
        add(answer.label().into_owned(), &answer.verdict());
    }
    let ways = [
        TransportError::Resolve,
        TransportError::Connect,
        TransportError::ConnectTimeout,
        TransportError::Tls,
    ];
    for lost in ways.into_iter().chain([
        TransportError::Closed,
        TransportError::Timeout,
        TransportError::Garbled,
    ]) {
        add(lost.as_str().to_owned(), &Answer::TransportError(lost).verdict());
    }
    add("NoneOfThem".to_owned(), &Verdict::Refused);
    add("Forbidden.RAM".to_owned(), &Verdict::Denied(AccessDenied::Permission));

    let prometheus = Prometheus::start(&file("try.yaml")).await;
    let code = |code| format!("label_replace(vector(1), \"code\", \"{code}\", \"\", \"\")");
    let codes = means.keys().map(code).collect::<Vec<_>>().join(" or ");
    let rules = file("rules.yaml");
    for rule in ["throttled", "barred", "failed"] {
        let record = rules.split(&format!("tollgate_upstream_calls_{rule}:")).nth(1).unwrap();
        let regex = record.split("code=~\"").nth(1).unwrap().split('"').next().unwrap();
        let hits = format!("label_replace({codes}, \"hit\", \"yes\", \"code\", \"{regex}\")");
        for (labels, _) in prometheus.ask(&hits).await.unwrap() {
            let code = &labels["code"];
            let hit = labels.contains_key("hit");
            assert_eq!(hit, means[code] == Some(rule), "{rule} and {code}: {regex}");
        }
    }
}

/// Posts one message to each topic, 1,000 a request.
async fn publish_to(serve: &Serve, topics: &[String]) {
    let kind = [("content-type", "application/x-ndjson")];
    for some in topics.chunks(1_000) {
        let line = |topic: &String| json!({"topic": topic, "payload": "x"}).to_string();
        let body = some.iter().map(line).collect::<Vec<_>>().join("\n");
        let answer = post(&serve.publish, "/publish", &kind, body.as_bytes()).await;
        assert!([200, 202, 207].contains(&answer.status), "{}", answer.text());
    }
}

#[tokio::test]
async fn there_are_few_series_whatever_topics_come() {
    let emulator = Emulator::start(&["--account-qps", "0", "--egress-ip-qps", "0"]).await;
    let spool = tempfile::tempdir().unwrap();
    let (path, url) = (spool.path().display().to_string(), emulator.url());
    // Of all sources, a mounted Secret has the most series.
    let secret = tempfile::tempdir().unwrap();
    std::fs::write(secret.path().join("access_key_id"), "testid").unwrap();
    std::fs::write(secret.path().join("access_key_secret"), "testsecret").unwrap();
    let mounted = secret.path().display().to_string();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("spool.store", "disk"),
        ("spool.path", &path),
        ("keys.source", "file"),
        ("keys.path", &mounted),
    ];
    let serve = Serve::start(&settings, &[]).await;
    until("it has a key", async || get(&serve.telemetry, "/startupz").await.status == 200).await;
    let count = async || {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        metrics.lines().filter(|line| !line.starts_with('#')).count()
    };
    let topics: Vec<_> = (0..20).map(|n| format!("Topic{n}")).collect();
    publish_to(&serve, &topics).await;
    until_delivered(&serve.telemetry).await;
    let of_twenty = count().await;
    assert!(of_twenty <= 650, "{of_twenty} series with 20 topics");

    let hostile: Vec<_> = (0..10_000)
        .map(|n| match n % 4 {
            0 => format!("hostile-{n}"),
            1 => format!("{n:-<60}"),
            2 => format!("host{n}/{n}"),
            _ => format!("\"}}\n{n} # HELP"),
        })
        .collect();
    publish_to(&serve, &hostile).await;
    until_delivered(&serve.telemetry).await;
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    // telemetry.max_topics is 50: the rest is one more.
    assert!(count().await <= 1_000, "{} series with 10,000 hostile topics", count().await);
    println!("{of_twenty} series with 20 topics, {} with 50 and all others", count().await);
    let accepted = emulator.report().await["accepted"].as_u64().unwrap();
    assert_eq!(accepted, 20 + 7_500);
    let (content, said) = promtool(&["check", "metrics"], &metrics).await;
    assert!(content && said.trim().is_empty(), "{said}");
}
