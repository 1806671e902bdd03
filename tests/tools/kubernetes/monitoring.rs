//! What the chart has for the Prometheus operator and Grafana: once in a cluster, and each pod scraped once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use super::{CHART, example_chart, helm, helm_with, of, read, rendered, root, template};
use crate::support::manifests::tool;
use crate::support::prometheus::promtool;
use crate::support::secrets::{SearchedNow as _, search};
use serde_json::{Value, json};

const ON: &[&str] = &["--set", "mode=monitoring"];

/// The rules of a release, by alert or record.
fn rules(manifests: &[Value]) -> BTreeMap<String, Value> {
    let rules = manifests.iter().filter(|manifest| manifest["kind"] == "PrometheusRule");
    let groups = rules.flat_map(|rule| rule["spec"]["groups"].as_array().unwrap());
    let mut named = BTreeMap::new();
    for rule in groups.flat_map(|group| group["rules"].as_array().unwrap()) {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        assert!(named.insert(name.to_owned(), rule.clone()).is_none(), "{name} twice");
    }
    named
}

/// The alerts and rules of `deploy/prometheus`.
fn originals() -> BTreeMap<String, Value> {
    let mut named = BTreeMap::new();
    for file in ["rules", "alerts"] {
        let text = read(&format!("deploy/prometheus/{file}.yaml"));
        let manifest = format!(
            "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nspec:\n  {}",
            text.replace('\n', "\n  ")
        );
        named.extend(rules(&crate::support::manifests::judged(&manifest)));
    }
    named
}

#[test]
fn files_are_those_of_deploy() {
    for (copied, original) in [
        ("dashboard.json", "grafana/tollgate.json"),
        ("rules.yaml", "prometheus/rules.yaml"),
        ("alerts.yaml", "prometheus/alerts.yaml"),
    ] {
        let path = format!("{CHART}/files/{copied}");
        // Not a link: a chart that is packed or fetched alone has it, too.
        assert!(root().join(&path).symlink_metadata().unwrap().is_file(), "{path}");
        let original = format!("deploy/{original}");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::copy(root().join(&original), root().join(&path)).unwrap();
        }
        assert!(
            read(&path) == read(&original),
            "{path} is not {original}: run UPDATE=1 cargo test --test tools files_are_those_of_deploy"
        );
    }
}

#[test]
fn rules_and_dashboard() {
    let manifests = helm(ON);
    let kinds: Vec<_> = manifests.iter().map(|m| m["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "PrometheusRule").count(), 2);
    assert_eq!(manifests.len(), 3, "{kinds:?}");
    // The rules are those that promtool has tested.
    assert_eq!(rules(&manifests), originals());
    let dashboard = of(&manifests, "ConfigMap");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let dashboard: Value =
        serde_json::from_str(dashboard["data"]["tollgate.json"].as_str().unwrap()).unwrap();
    let original: Value = serde_json::from_str(&read("deploy/grafana/tollgate.json")).unwrap();
    assert_eq!(dashboard, original);
}

#[tokio::test]
async fn each_alert_can_be_changed() {
    let originals = originals();
    let alerts: Vec<_> = originals.iter().filter(|(_, rule)| !rule["alert"].is_null()).collect();
    assert!(alerts.len() > 15);
    let mut values = "mode: monitoring\nmonitoring:\n  runbooks: https://wiki.example/tollgate/\n  labels: { release: prometheus }\n  alerts:\n".to_owned();
    let mut moved = 0;
    for (name, rule) in &alerts {
        values += "    ";
        values.push_str(name);
        values += ":\n      for: 77m\n      severity: info\n      labels: { team: shop }\n";
        if super::readme::threshold(rule["expr"].as_str().unwrap()).is_some() {
            values += "      threshold: 0.4321\n";
            moved += 1;
        }
    }
    assert!(moved > 10, "{moved}");
    let manifests = helm_with(&values);
    let changed = rules(&manifests);
    for (name, rule) in &alerts {
        let rule_now = &changed[*name];
        assert_eq!(rule_now["for"], "77m");
        assert_eq!(rule_now["labels"], json!({"severity": "info", "team": "shop"}));
        let (before, after) = (rule["expr"].as_str().unwrap(), rule_now["expr"].as_str().unwrap());
        if let Some(threshold) = super::readme::threshold(before) {
            assert_eq!(super::readme::threshold(after).as_deref(), Some("0.4321"), "{after}");
            // Nothing else of it has moved.
            assert_eq!(after.replace("0.4321", &threshold), before, "{name}");
        } else {
            assert_eq!(before, after);
        }
    }
    assert_eq!(
        changed["tollgate:runbooks:info"]["labels"]["base"],
        "https://wiki.example/tollgate/"
    );
    let dashboard = of(&manifests, "ConfigMap")["data"]["tollgate.json"].as_str().unwrap();
    assert!(dashboard.contains("https://wiki.example/tollgate/"));
    assert!(!dashboard.contains("https://example.com/"), "links go to the runbooks, too");
    let parsed: Value = serde_json::from_str(dashboard).unwrap();
    assert!(parsed["templating"].is_object());
    // Prometheus reads them as they are.
    for manifest in manifests.iter().filter(|manifest| manifest["kind"] == "PrometheusRule") {
        assert_eq!(manifest["metadata"]["labels"]["release"], "prometheus");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest["spec"].to_string()).unwrap();
        let (content, said) =
            promtool(&["check", "rules", file.path().to_str().unwrap()], "").await;
        assert!(content, "{said}");
    }
    // One of them switched off is gone, and only that.
    let off = helm(&["--set", "mode=monitoring,monitoring.alerts.TollgateAbsent.enabled=false"]);
    let mut left = rules(&off);
    assert!(
        left.insert("TollgateAbsent".to_owned(), originals["TollgateAbsent"].clone()).is_none()
    );
    assert_eq!(left, originals);
}

/// Two gateways, a sidecar's chart and Kustomize's sidecars in one namespace, and the rules of the cluster.
#[test]
fn releases_do_not_double_anything() {
    let folder = example_chart();
    let path = folder.path().join("orders").display().to_string();
    let releases = [
        rendered("helm", &["template", "one", CHART, "--set", "monitoring.monitor=PodMonitor"]),
        rendered(
            "helm",
            &[
                "template",
                "two",
                CHART,
                "--set",
                "monitoring.monitor=ServiceMonitor,spool.volume=claims",
            ],
        ),
        rendered(
            "helm",
            &["template", "three", &path, "--set", "tollgate.monitoring.monitor=PodMonitor"],
        ),
        rendered("helm", &["template", "rules", CHART, "--set", "mode=monitoring"]),
        rendered("kubectl", &["kustomize", "deploy/kustomize/example"]),
        rendered("kubectl", &["kustomize", "deploy/kustomize/monitor"]),
    ];
    let all: Vec<_> = releases.iter().flatten().collect();
    // A monitor selects pods by their labels, or a service and by that its pods.
    let labels = |manifest: &Value| manifest["metadata"]["labels"].clone();
    let selected = |selector: &Value, labels: &Value| {
        selector.as_object().unwrap().iter().all(|(key, value)| &labels[key] == value)
    };
    let monitors: Vec<_> =
        all.iter().filter(|m| m["kind"].as_str().unwrap().ends_with("Monitor")).collect();
    assert_eq!(monitors.len(), 4);
    // Two gateways are two services, and a sidecar's is its app's.
    let service = |monitor: &Value, pod: &Value| {
        let endpoints = ["podMetricsEndpoints", "endpoints"].map(|key| &monitor["spec"][key][0]);
        let set = endpoints.iter().find_map(|endpoint| endpoint["relabelings"].as_array());
        let set = set.unwrap().iter().find(|set| set["targetLabel"] == "service").unwrap();
        let label = set["sourceLabels"][0].as_str().unwrap();
        let label = label.strip_prefix("__meta_kubernetes_pod_label_").unwrap();
        let is_it = |(key, _): &(&String, &Value)| key.replace(['.', '/', '-'], "_") == label;
        pod.as_object().unwrap().iter().find(is_it).unwrap().1.clone()
    };
    let (mut pods, mut services) = (0, BTreeSet::new());
    for workload in all.iter().filter(|m| m["kind"] == "Deployment" || m["kind"] == "StatefulSet") {
        let pod = &template(workload)["metadata"]["labels"];
        let scrapes = monitors.iter().filter(|monitor| {
            let wanted = &monitor["spec"]["selector"]["matchLabels"];
            if monitor["kind"] == "PodMonitor" {
                return selected(wanted, pod);
            }
            let services =
                all.iter().filter(|m| m["kind"] == "Service" && selected(wanted, &labels(m)));
            services.clone().count() == 1
                && services.clone().all(|s| selected(&s["spec"]["selector"], pod))
        });
        let scrapes: Vec<_> = scrapes.collect();
        assert_eq!(scrapes.len(), 1, "{pod}");
        services.insert(service(scrapes[0], pod).as_str().unwrap().to_owned());
        pods += 1;
    }
    assert_eq!(pods, 4);
    let wanted = ["one-tollgate", "orders", "two-tollgate"];
    assert!(services.iter().eq(wanted), "{services:?}");
    // The labels of deploy/prometheus/scrape.yaml.
    for monitor in monitors {
        let endpoints = ["podMetricsEndpoints", "endpoints"].map(|key| &monitor["spec"][key][0]);
        let endpoint = endpoints.into_iter().find(|endpoint| !endpoint.is_null()).unwrap();
        assert_eq!(endpoint["honorLabels"], true);
        let set = endpoint["relabelings"].as_array().unwrap().iter();
        let set: Vec<_> =
            set.map(|relabeling| relabeling["targetLabel"].as_str().unwrap()).collect();
        assert!(
            ["job", "service", "account", "region"].iter().all(|label| set.contains(label)),
            "{set:?}"
        );
        // The second time it runs on the same pod it would be a second series.
        assert_eq!(endpoint["port"], "telemetry");
    }
    // And one set of rules.
    assert_eq!(all.iter().filter(|m| m["kind"] == "PrometheusRule").count(), 2);
}

/// Held against the operator's own types, unknown keys included.
#[test]
fn the_operator_knows_what_is_rendered() {
    let all: Vec<Value> = [
        helm(&["--set", "monitoring.monitor=PodMonitor,monitoring.cluster=eu"]),
        helm(&["--set", "monitoring.monitor=ServiceMonitor"]),
        helm(ON),
        rendered("kubectl", &["kustomize", "deploy/kustomize/monitor"]),
    ]
    .concat();
    let judge = |manifests: &[Value]| {
        let mut judge = Command::new("node")
            .arg(root().join("tests/support/operator.mjs"))
            .arg(root().join("target/test-npm"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tests/setup.sh has installed node");
        judge
            .stdin
            .take()
            .unwrap()
            .write_all(Value::from(manifests).to_string().as_bytes())
            .unwrap();
        let output = judge.wait_with_output().unwrap();
        search(&output);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), said)
    };
    let (right, said) = judge(&all);
    assert!(right && said.trim() == "5", "{said}");
    let wrong = |from: &str, to: &str, words: &str| {
        let text = Value::from(all.clone()).to_string();
        assert!(text.contains(from));
        let changed: Vec<Value> = serde_json::from_str(&text.replace(from, to)).unwrap();
        let (right, said) = judge(&changed);
        assert!(!right && said.contains(words), "{said}");
    };
    wrong("\"honorLabels\"", "\"honourLabels\"", "honourLabels");
    wrong("\"port\":\"telemetry\"", "\"port\":9464", "port");
}

#[test]
fn checkov_is_content() {
    let example = example_chart();
    let path = example.path().join("orders").display().to_string();
    // It does not look into folders whose name begins with a dot.
    let folder = tempfile::Builder::new().prefix("manifests").tempdir().unwrap();
    for (name, binary, args) in [
        (
            "gateway",
            "helm",
            &["template", "demo", CHART, "-n", "shop", "--set", "monitoring.monitor=PodMonitor"][..],
        ),
        (
            "claims",
            "helm",
            &[
                "template",
                "demo",
                CHART,
                "-n",
                "shop",
                "--set",
                "spool.volume=claims,serviceAccount.create=true",
            ],
        ),
        (
            "monitoring",
            "helm",
            &["template", "demo", CHART, "-n", "shop", "--set", "mode=monitoring"],
        ),
        (
            "keyring",
            "helm",
            &[
                "template",
                "demo",
                CHART,
                "-n",
                "infra",
                "--set",
                "mode=keyring,keyring.roleArn=acs:ram::1:role/r,keyring.tlsSecret=tls,keyring.callers[0].name=shop,keyring.callers[0].subject=s",
            ],
        ),
        ("sidecar", "helm", &["template", "demo", &path, "-n", "shop"]),
        ("component", "kubectl", &["kustomize", "deploy/kustomize/example"]),
    ] {
        let text = tool(binary, args).stdout;
        assert!(!text.is_empty(), "{name}");
        std::fs::write(folder.path().join(name).with_extension("yaml"), text).unwrap();
    }
    let scan = || {
        let scanned = Command::new(root().join("target/test-checkov/bin/checkov"))
            .args([
                "--framework",
                "kubernetes",
                "--compact",
                "--quiet",
                "--skip-download",
                "-o",
                "json",
                "--config-file",
            ])
            .arg(root().join("deploy/checkov.yaml"))
            .arg("-d")
            .arg(folder.path())
            .env("LOG_LEVEL", "CRITICAL")
            .searched_now()
            .expect("tests/setup.sh has made target/test-checkov");
        let report: Value = serde_json::from_slice(&scanned.stdout).unwrap_or_else(|_| {
            panic!(
                "{}{}",
                String::from_utf8_lossy(&scanned.stdout),
                String::from_utf8_lossy(&scanned.stderr)
            )
        });
        (report["summary"]["passed"].as_u64().unwrap(), report["results"]["failed_checks"].clone())
    };
    let (passed, failed) = scan();
    assert!(passed > 500, "{passed}");
    assert_eq!(failed.as_array().unwrap().len(), 0, "{failed:#}");
    // It would find something.
    let path = folder.path().join("gateway.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false");
    std::fs::write(&path, text).unwrap();
    assert!(!scan().1.as_array().unwrap().is_empty());
}
