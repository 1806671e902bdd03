//! The chart as a sidecar of another chart's workload.

use std::collections::BTreeSet;

use super::{copy, example_chart, fits, grace, of, ours, rendered, template};
use crate::support::manifests::tool;
use serde_json::Value;

#[test]
fn by_three_lines_of_a_chart() {
    let folder = example_chart();
    let path = folder.path().join("orders");
    let path = path.to_str().unwrap();
    let manifests = rendered("helm", &["template", "demo", path]);
    let deployment = of(&manifests, "Deployment");
    fits(&manifests, deployment);
    let (container, pod) = ours(deployment);
    assert_eq!(container["restartPolicy"], "Always", "a native sidecar");
    assert!(container["ports"].as_array().unwrap().iter().all(|port| port["name"] != "publish"));
    assert_eq!(super::variables(container)["TOLLGATE__LISTEN__PUBLISH"], "127.0.0.1:15080");
    assert_eq!(pod["initContainers"][0]["name"], "tollgate");
    grace(pod, 20);
    // No gateway beside it.
    assert!(manifests.iter().all(|manifest| manifest["kind"] != "Service"));
    let linted = tool("helm", &["lint", "--strict", path]);
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
}

#[test]
fn with_a_socket_and_a_claim_for_each_pod() {
    let folder = example_chart();
    let chart = folder.path().join("orders");
    let workload = chart.join("templates/deployment.yaml");
    let text = std::fs::read_to_string(&workload)
        .unwrap()
        .replace("kind: Deployment", "kind: StatefulSet");
    let claims = "spec:\n  serviceName: orders\n  volumeClaimTemplates:\n    \
                  {{- include \"tollgate.claims\" .Subcharts.tollgate | nindent 4 }}\n  replicas";
    let text = text.replace("spec:\n  replicas", claims);
    let text = text.replace(
        "securityContext: { runAsNonRoot: true }",
        "securityContext: { runAsNonRoot: true, fsGroup: 65532 }",
    );
    let annotations = "metadata:\n      annotations:\n        {{- include \"tollgate.annotations\" .Subcharts.tollgate | nindent 8 }}\n      labels:";
    let text = text.replace("metadata:\n      labels:", annotations);
    std::fs::write(&workload, text).unwrap();
    let set = "tollgate.spool.volume=claims,tollgate.restartOnChange=true,tollgate.publish.listen=unix:/run/tollgate/publish.sock";
    let manifests = rendered("helm", &["template", "demo", chart.to_str().unwrap(), "--set", set]);
    let set = of(&manifests, "StatefulSet");
    fits(&manifests, set);
    let (container, _) = ours(set);
    assert_eq!(
        super::variables(container)["TOLLGATE__LISTEN__PUBLISH"],
        "unix:/run/tollgate/publish.sock"
    );
    assert!(template(set)["metadata"]["annotations"]["tollgate/config-checksum"].is_string());
}

/// Each has its own configuration: with a shared one the wrong instance would be billed.
#[test]
fn two_workloads_of_one_release() {
    let folder = tempfile::tempdir().unwrap();
    let shop = folder.path().join("shop");
    std::fs::create_dir_all(shop.join("charts")).unwrap();
    std::fs::write(shop.join("Chart.yaml"), "apiVersion: v2\nname: shop\nversion: 0.1.0\n")
        .unwrap();
    for name in ["orders", "bills"] {
        let example = example_chart();
        let chart = shop.join("charts").join(name);
        copy(example.path().join("orders").to_str().unwrap(), &chart);
        for file in ["Chart.yaml", "values.yaml", "templates/deployment.yaml"] {
            let path = chart.join(file);
            let text = std::fs::read_to_string(&path).unwrap().replace("orders", name);
            std::fs::write(&path, text.replace("post-cn-0pp12gl0000", &format!("post-cn-{name}")))
                .unwrap();
        }
    }
    let manifests = rendered("helm", &["template", "demo", shop.to_str().unwrap()]);
    let all: Vec<_> = manifests.iter().map(|m| (&m["kind"], &m["metadata"]["name"])).collect();
    let distinct: BTreeSet<_> = all.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
    assert_eq!(all.len(), distinct.len(), "{all:?}");
    let mut labels = BTreeSet::new();
    for deployment in manifests.iter().filter(|m| m["kind"] == "Deployment") {
        let (_, pod) = ours(deployment);
        let volumes = pod["volumes"].as_array().unwrap();
        let map =
            &volumes.iter().find(|v| v["name"] == "tollgate-config").unwrap()["configMap"]["name"];
        let config =
            manifests.iter().find(|m| m["kind"] == "ConfigMap" && &m["metadata"]["name"] == map);
        let instance = format!("post-cn-{}", deployment["metadata"]["name"].as_str().unwrap());
        let config: &Value = &config.unwrap()["data"]["tollgate.toml"];
        assert!(config.as_str().unwrap().contains(&instance), "{map}: {config}");
        labels.insert(
            template(deployment)["metadata"]["labels"]["tollgate/name"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(labels.len(), 2);
}
