//! A real Prometheus gives each pod the labels that rules and alerts need, whichever way it finds the pod: by
//! `deploy/prometheus/scrape.yaml`, or by a monitor, as the operator turns that into a configuration. What Kubernetes
//! would say of the pods is in files, and follows from the rendered manifests.

use std::collections::{BTreeMap, BTreeSet};

use super::{CHART, example_chart, rendered, template};
use crate::support::manifests::containers;
use crate::support::ports::free_port;
use crate::support::prometheus::{Prometheus, file, replaced};
use serde_json::{Value, json};

/// The namespace of all pods here.
const NAMESPACE: &str = "shop";

/// A label as Prometheus names it.
fn meta(of: &str, label: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("__meta_kubernetes_{of}_label_{}", label.chars().map(word).collect::<String>())
}

/// Two gateways, a sidecar's chart, and Kustomize's sidecars, each with its monitor.
fn releases() -> Vec<Vec<Value>> {
    let folder = example_chart();
    let sidecar = folder.path().join("orders").display().to_string();
    let helm = |name: &str, chart: &str, set: &str| {
        rendered("helm", &["template", name, chart, "--namespace", NAMESPACE, "--set", set])
    };
    let component = ["deploy/kustomize/example", "deploy/kustomize/monitor"];
    vec![
        helm("one", CHART, "monitoring.monitor=PodMonitor"),
        helm("two", CHART, "account=second,monitoring.monitor=ServiceMonitor,spool.volume=claims"),
        helm("three", &sidecar, "tollgate.monitoring.monitor=PodMonitor"),
        component.iter().flat_map(|path| rendered("kubectl", &["kustomize", path])).collect(),
    ]
}

/// Each port of each pod, as the pods' discovery has them, and each port of each Service, as that of endpoints does.
fn targets(manifests: &[Value], address: &str) -> (Vec<Value>, Vec<Value>) {
    let (mut pods, mut endpoints) = (Vec::new(), Vec::new());
    for workload in
        manifests.iter().filter(|m| m["kind"] == "Deployment" || m["kind"] == "StatefulSet")
    {
        let labels = template(workload)["metadata"]["labels"].as_object().unwrap();
        let mut known = json!({
            "__meta_kubernetes_namespace": NAMESPACE,
            "__meta_kubernetes_pod_name": format!("{}-0", workload["metadata"]["name"].as_str().unwrap()),
            "__meta_kubernetes_pod_phase": "Running",
        });
        for (label, value) in labels {
            known[meta("pod", label)] = value.clone();
        }
        let all = containers(&template(workload)["spec"]);
        for port in all.flat_map(|container| container["ports"].as_array().into_iter().flatten()) {
            let mut known = known.clone();
            known["__meta_kubernetes_pod_container_port_name"] = port["name"].clone();
            let number = port["containerPort"].to_string();
            known["__meta_kubernetes_pod_container_port_number"] = number.into();
            pods.push(json!({"targets": [address], "labels": known}));
        }
        for service in manifests.iter().filter(|m| m["kind"] == "Service") {
            let selector = service["spec"]["selector"].as_object().unwrap();
            if !selector.iter().all(|(label, value)| labels.get(label) == Some(value)) {
                continue;
            }
            let mut known = known.clone();
            known["__meta_kubernetes_service_name"] = service["metadata"]["name"].clone();
            for (label, value) in service["metadata"]["labels"].as_object().unwrap() {
                known[meta("service", label)] = value.clone();
            }
            for port in service["spec"]["ports"].as_array().unwrap() {
                known["__meta_kubernetes_endpoint_port_name"] = port["name"].clone();
                endpoints.push(json!({"targets": [address], "labels": known}));
            }
        }
    }
    (pods, endpoints)
}

/// What the operator makes of a monitor: what it selects, its own labels, and then the monitor's.
fn configured(monitor: &Value, files: &BTreeMap<&str, String>) -> Value {
    let spec = &monitor["spec"];
    let (of, endpoint, port) = match monitor["kind"].as_str().unwrap() {
        "PodMonitor" => ("pod", &spec["podMetricsEndpoints"][0], "pod_container_port_name"),
        "ServiceMonitor" => ("service", &spec["endpoints"][0], "endpoint_port_name"),
        other => panic!("no monitor: {other}"),
    };
    let mut relabeling = Vec::new();
    for (label, value) in spec["selector"]["matchLabels"].as_object().unwrap() {
        relabeling
            .push(json!({"action": "keep", "source_labels": [meta(of, label)], "regex": value}));
    }
    let port = format!("__meta_kubernetes_{port}");
    relabeling.push(json!({"action": "keep", "source_labels": [port], "regex": endpoint["port"]}));
    let name = monitor["metadata"]["name"].as_str().unwrap();
    for (from, to) in [("namespace", "namespace"), ("pod_name", "pod"), ("service_name", "service")]
    {
        let from = format!("__meta_kubernetes_{from}");
        relabeling.push(json!({"source_labels": [from], "target_label": to}));
    }
    relabeling.push(json!({"target_label": "job", "replacement": format!("{NAMESPACE}/{name}")}));
    for ours in endpoint["relabelings"].as_array().unwrap() {
        // The operator's names are Prometheus's, in another style.
        let text = ours.to_string().replace("sourceLabels", "source_labels");
        relabeling
            .push(serde_json::from_str(&text.replace("targetLabel", "target_label")).unwrap());
    }
    json!({
        "job_name": format!("{of}/{NAMESPACE}/{name}"),
        "honor_labels": endpoint["honorLabels"],
        "file_sd_configs": [{"files": [files[of]]}],
        "relabel_configs": relabeling,
    })
}

/// The labels of all targets.
async fn labels(prometheus: &Prometheus, targets: f64) -> BTreeSet<BTreeMap<String, String>> {
    prometheus.reaches("count(up)", targets).await;
    let up = "count by (job, namespace, pod, service, account, region) (up)";
    let up = prometheus.ask(up).await.unwrap();
    assert!(up.iter().all(|(_, n)| n.total_cmp(&1.0).is_eq()), "one is scraped twice: {up:?}");
    up.into_iter().map(|(labels, _)| labels).collect()
}

#[tokio::test]
async fn pods_have_the_labels_of_the_rules() {
    let address = format!("127.0.0.1:{}", free_port());
    let folder = tempfile::tempdir().unwrap();
    let (mut pods, mut endpoints, mut monitors) = (Vec::new(), Vec::new(), Vec::new());
    for release in releases() {
        let (more, others) = targets(&release, &address);
        pods.extend(more);
        endpoints.extend(others);
        let is_one = |m: &Value| m["kind"].as_str().unwrap().ends_with("Monitor");
        monitors.extend(release.into_iter().filter(is_one));
    }
    assert_eq!(monitors.len(), 4);
    let mut files = BTreeMap::new();
    for (of, known) in [("pod", pods), ("service", endpoints)] {
        let path = folder.path().join(format!("{of}.json"));
        std::fs::write(&path, Value::from(known).to_string()).unwrap();
        files.insert(of, path.display().to_string());
    }

    let kubernetes = "    kubernetes_sd_configs:\n      - role: pod\n";
    let found = format!("    file_sd_configs:\n      - files: [\"{}\"]\n", files["pod"]);
    let by_file = replaced(&file("scrape.yaml"), kubernetes, &found);
    let by_file = Prometheus::start(&by_file).await;
    let configs: Vec<_> = monitors.iter().map(|monitor| configured(monitor, &files)).collect();
    let by_monitor = format!(
        "global:\n  scrape_interval: 15s\n  evaluation_interval: 15s\nrule_files: [rules.yaml, alerts.yaml]\n\
         scrape_configs: {}\n",
        Value::from(configs)
    );
    let by_monitor = Prometheus::start(&by_monitor).await;

    let wanted = |pod: &str, service: &str, account: &str, region: Option<&str>| {
        let labels = [("job", "tollgate"), ("namespace", NAMESPACE), ("pod", pod)];
        let more = [("service", service), ("account", account)];
        let all = labels.into_iter().chain(more).chain(region.map(|region| ("region", region)));
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    // Two gateways are two services, and a sidecar's is its app's.
    let wanted: BTreeSet<BTreeMap<String, String>> = [
        wanted("one-tollgate-0", "one-tollgate", "default", Some("cn-hangzhou")),
        wanted("two-tollgate-0", "two-tollgate", "second", Some("cn-hangzhou")),
        wanted("orders-0", "orders", "default", Some("cn-hangzhou")),
        wanted("orders-api-0", "orders", "default", None),
    ]
    .into();
    assert_eq!(labels(&by_file, 4.0).await, wanted, "scrape.yaml");
    assert_eq!(labels(&by_monitor, 4.0).await, wanted, "the monitors");
}
