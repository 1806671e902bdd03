//! An upgrade: what a cluster refuses to change stays as it was, and what is there meanwhile works with the old pods and
//! the new ones. `chart-0.1` has what version 0.1.0 rendered.

use super::{CHART, copy, helm, of, read, refuses, rendered, template, workload};
use crate::support::manifests::{containers, judged};
use serde_json::{Map, Value, json};

/// What a cluster refuses to change in an object of this kind.
fn fixed(manifest: &Value) -> Value {
    let kind = manifest["kind"].as_str().unwrap();
    let fields: &[&str] = match kind {
        "Deployment" => &["/spec/selector"],
        "StatefulSet" => &[
            "/spec/selector",
            "/spec/serviceName",
            "/spec/podManagementPolicy",
            "/spec/volumeClaimTemplates",
        ],
        // None of them names an address; a headless one stays headless.
        "Service" => &["/spec/clusterIP", "/spec/clusterIPs", "/spec/ipFamilies"],
        "ConfigMap" | "Secret" => &["/immutable"],
        // Helm deletes them before it creates them again.
        "Job" | "Pod" => {
            let policy = &manifest["metadata"]["annotations"]["helm.sh/hook-delete-policy"];
            assert!(policy.as_str().unwrap().contains("before-hook-creation"), "{manifest}");
            &[]
        }
        "NetworkPolicy"
        | "PodDisruptionBudget"
        | "ServiceAccount"
        | "PodMonitor"
        | "ServiceMonitor"
        | "HorizontalPodAutoscaler"
        | "PrometheusRule" => &[],
        other => panic!("what is fixed in a {other}?"),
    };
    fields.iter().map(|field| manifest.pointer(field).cloned().unwrap_or_default()).collect()
}

fn named<'a>(manifests: &'a [Value], like: &Value) -> Option<&'a Value> {
    let (kind, name) = (&like["kind"], &like["metadata"]["name"]);
    manifests.iter().find(|m| &m["kind"] == kind && &m["metadata"]["name"] == name)
}

fn is_selected(selector: &Value, pod: &Map<String, Value>) -> bool {
    selector.as_object().unwrap().iter().all(|(label, value)| pod.get(label) == Some(value))
}

/// The names of the ports of a workload's pods.
fn ports(workload: &Value) -> Vec<&Value> {
    let all = containers(&template(workload)["spec"]);
    all.flat_map(|c| c["ports"].as_array().into_iter().flatten()).map(|p| &p["name"]).collect()
}

/// What version 0.1.0 rendered, and what this one does with values that are translated as docs/kubernetes.md says.
fn both(file: &str, values: &str) -> (Vec<Value>, Vec<Value>) {
    let old = judged(&read(&format!("tests/tools/kubernetes/chart-0.1/{file}.yaml")));
    (old, helm(&["--set", values]))
}

#[test]
fn a_gateway_of_0_1() {
    for (file, values) in [
        ("gateway", "secret=tollgate,replicas=3,monitoring.monitor=PodMonitor"),
        ("claim", "secret=tollgate,spool.volume=claim,spool.claim=spool"),
    ] {
        let (old, new) = both(file, values);
        for manifest in &old {
            let successor = named(&new, manifest);
            let successor = successor.unwrap_or_else(|| panic!("{file}: it goes: {manifest}"));
            assert_eq!(fixed(manifest), fixed(successor), "{file}");
        }
        let (before, after) = (workload(&old), workload(&new));
        assert_eq!(before["spec"]["replicas"], after["spec"]["replicas"], "{file}");
        let labels =
            [before, after].map(|w| template(w)["metadata"]["labels"].as_object().unwrap());
        // While old pods and new ones run side by side, each object is for both.
        for manifest in old.iter().chain(&new) {
            let at = match manifest["kind"].as_str().unwrap() {
                "Service" => "/spec/selector",
                "PodDisruptionBudget" | "Deployment" => "/spec/selector/matchLabels",
                "NetworkPolicy" => "/spec/podSelector/matchLabels",
                _ => continue,
            };
            let selector = manifest.pointer(at).unwrap();
            assert!(labels.iter().all(|pod| is_selected(selector, pod)), "{file}: {manifest}");
        }
        // Ports have moved, and are found by their names.
        for workload in [before, after] {
            for manifest in new.iter().filter(|m| m["kind"] == "Service") {
                let target = &manifest["spec"]["ports"][0]["targetPort"];
                assert!(ports(workload).contains(&target), "{file}: {manifest}");
            }
            let policy = &of(&new, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"];
            assert!(ports(workload).contains(&policy), "{file}: {policy}");
        }
        let is_service =
            |m: &&Value| m["kind"] == "Service" && m["metadata"]["name"] == "demo-tollgate";
        let [was, is] = [&old, &new].map(|all| all.iter().find(is_service).unwrap());
        assert_eq!(was["spec"]["ports"][0]["port"], is["spec"]["ports"][0]["port"], "{file}");
        // The same volume, whose new pod waits until the old one has ended.
        let spool = |workload: &Value| {
            let volumes = template(workload)["spec"]["volumes"].as_array().unwrap().iter();
            volumes.clone().find(|v| v["name"] == "tollgate-spool").unwrap().clone()
        };
        assert_eq!(spool(before), spool(after), "{file}");
        let strategy = |workload: &Value| workload["spec"]["strategy"].clone();
        assert_eq!(strategy(before), strategy(after), "{file}");
    }
}

/// Its workload's chart names the map by an include, so that both change in one upgrade.
#[test]
fn a_sidecar_of_0_1() {
    let (old, new) = both("sidecar", "mode=sidecar,workload=orders");
    let map = of(&old, "ConfigMap");
    assert_eq!(map["metadata"]["name"], "demo-tollgate");
    assert!(named(&new, map).is_none(), "two workloads would share it");
    let (_, kept) = both("sidecar", "mode=sidecar,workload=orders,fullnameOverride=demo-tollgate");
    assert_eq!(fixed(named(&kept, map).unwrap()), fixed(map));
}

/// A value that has no effect any more is none that is passed over.
#[test]
fn old_values_are_refused() {
    let document = read("docs/kubernetes.md");
    let (_, table) = document.split_once("## Upgrade from 0.1").unwrap();
    for (old, words) in [
        ("gateway.replicas=3", "gateway"),
        ("gateway.clients[0].podSelector.a=b", "gateway"),
        ("gateway.egressPorts[0]=443", "gateway"),
        ("monitoring.scrapers[0].podSelector.a=b", "scrapers"),
        ("monitoring.podMonitor=true", "podMonitor"),
        ("monitoring.rules=true", "rules"),
        ("monitoring.dashboard=true", "dashboard"),
        ("spool.claim=spool", "claim"),
        ("mode=sidecar", "workload"),
    ] {
        refuses(&["--set", old], words);
        let key = old.split(['=', '[']).next().unwrap();
        assert!(table.contains(&format!("`{key}")), "docs/kubernetes.md does not translate {key}");
    }
}

/// From this version to a later one, with other values.
#[test]
fn a_later_version() {
    let folder = tempfile::tempdir().unwrap();
    let later = folder.path().join("tollgate");
    copy(CHART, &later);
    let about = std::fs::read_to_string(later.join("Chart.yaml")).unwrap();
    let (version, app) = ("version: 0.2.0", "appVersion: 0.1.0");
    assert!(about.contains(version) && about.contains(app));
    let about = about.replace(version, "version: 0.3.0").replace(app, "appVersion: 0.2.0");
    std::fs::write(later.join("Chart.yaml"), about).unwrap();
    let later = later.display().to_string();
    let changed = "restartOnChange=true,podLabels.a=b,podAnnotations.c=d,account=other,publish.port=18080,drainSeconds=60,\
                   secret=tollgate,service.port=8000,service.type=LoadBalancer,serviceAccount.create=true";
    for volume in ["emptyDir", "claims"] {
        let volume = format!("spool.volume={volume}");
        let before = helm(&["--set", &volume]);
        let set = format!("{volume},{changed},replicas=4");
        let after =
            rendered("helm", &["template", "demo", &later, "--namespace", "shop", "--set", &set]);
        for manifest in &before {
            let successor = named(&after, manifest).unwrap_or_else(|| panic!("{manifest}"));
            assert_eq!(fixed(manifest), fixed(successor), "{volume}");
            assert_ne!(
                manifest["metadata"]["labels"]["helm.sh/chart"],
                successor["metadata"]["labels"]["helm.sh/chart"]
            );
        }
    }
    // What a cluster refuses is documented.
    let size = |size: &str| {
        let manifests = helm(&["--set", &format!("spool.volume=claims,spool.size={size}")]);
        fixed(of(&manifests, "StatefulSet"))
    };
    assert_ne!(size("1Gi"), size("2Gi"));
    assert!(read("docs/kubernetes.md").contains("kubectl delete statefulset --cascade=orphan"));
    let headless = helm(&[]);
    let addresses = headless.iter().filter(|m| m["kind"] == "Service").map(fixed);
    let none = [json!([null, null, null]), json!(["None", null, null])];
    assert!(addresses.clone().count() == 2 && addresses.clone().all(|a| none.contains(&a)));
}
