//! The component for Kustomize.

use std::process::Output;

use super::{bytes, copy, fits, grace, helm, of, ours, read, rendered, root, template, workload};
use crate::support::manifests::{containers, tool};
use serde_json::{Value, json};
use tempfile::TempDir;

const EXAMPLE: &[&str] = &["kustomize", "deploy/kustomize/example"];

/// A workload as a user has it, with an init container, a volume and a label of its own.
fn app(kind: &str, name: &str) -> Value {
    let version = match kind {
        "Job" | "CronJob" => "batch/v1",
        "Rollout" => "argoproj.io/v1alpha1",
        _ => "apps/v1",
    };
    let own = json!({"name": "own", "image": "registry.example.com/own:1"});
    let mut pod = json!({"initContainers": [own], "containers": [own],
        "volumes": [{"name": "own", "emptyDir": {}}]});
    pod["initContainers"][0]["name"] = json!("before");
    if matches!(kind, "Job" | "CronJob") {
        pod["restartPolicy"] = json!("Never");
    }
    let template = json!({"metadata": {"labels": {"app": name}}, "spec": pod});
    let selector = json!({"matchLabels": {"app": name}});
    let spec = match kind {
        "CronJob" => {
            json!({"schedule": "5 4 1 1 1", "jobTemplate": {"spec": {"template": template}}})
        }
        "Job" => json!({"template": template}),
        "StatefulSet" => {
            json!({"serviceName": name, "selector": selector, "template": template})
        }
        _ => json!({"selector": selector, "template": template}),
    };
    json!({"apiVersion": version, "kind": kind, "spec": spec,
        "metadata": {"name": name, "labels": {"tollgate/sidecar": "true"}}})
}

/// A workload with a claim of its own.
fn claimed(mut app: Value) -> String {
    app["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "own"}, "spec":
        {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}}]);
    app.to_string()
}

/// A folder with the components, and a kustomization with these files and components.
fn kustomization(files: &[(&str, String)], components: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy("deploy/kustomize", &folder.path().join("kustomize"));
    let shop = folder.path().join("kustomize/shop");
    std::fs::create_dir(&shop).unwrap();
    for (name, text) in files {
        std::fs::write(shop.join(name), text).unwrap();
    }
    std::fs::write(shop.join("tollgate.toml"), read("deploy/kustomize/example/tollgate.toml"))
        .unwrap();
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    let text = json!({"resources": names, "components": components, "namePrefix": "eu-",
        "images": [{"name": "tollgate", "newName": "registry.example.com/tollgate"}],
        "configMapGenerator": [{"name": "tollgate", "files": ["tollgate.toml"]}]});
    std::fs::write(shop.join("kustomization.yaml"), text.to_string()).unwrap();
    folder
}

fn shop(folder: &TempDir) -> String {
    folder.path().join("kustomize/shop").display().to_string()
}

#[test]
fn an_example() {
    let manifests = rendered("kubectl", EXAMPLE);
    let deployment = of(&manifests, "Deployment");
    fits(&manifests, deployment);
    let (container, pod) = ours(deployment);
    assert_eq!(container["restartPolicy"], "Always", "a native sidecar");
    grace(pod, 30);
    // All pods of a rollout together keep to the ceilings, and another kustomization has another ConfigMap.
    let map = of(&manifests, "ConfigMap");
    assert_eq!(map["metadata"]["name"], "orders-tollgate");
    let volumes = pod["volumes"].as_array().unwrap().iter();
    let names: Vec<_> = volumes.map(|volume| &volume["configMap"]["name"]).collect();
    assert!(names.contains(&&json!("orders-tollgate")), "{names:?}");
    let config = map["data"]["tollgate.toml"].as_str().unwrap();
    let pods = 2 * deployment["spec"]["replicas"].as_u64().unwrap();
    for (key, all) in [("account", 1_000), ("egress_ip", 300)] {
        assert!(config.lines().any(|line| line == format!("{key} = {}", all / pods)), "{config}");
    }
    // What the example says one needs for it.
    let example = read("deploy/kustomize/example/kustomization.yaml");
    assert!(example.contains("components: [../sidecar]"));
    // Only what the example shows is there: the template of the component is not for a cluster.
    assert_eq!(manifests.len(), 3);
    // RRSA: the pod asks for it, and its service account says the role.
    let account = of(&manifests, "ServiceAccount");
    assert_eq!(super::variables(container)["TOLLGATE__KEYS__SOURCE"], "auto");
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert!(
        account["metadata"]["annotations"]["pod-identity.alibabacloud.com/role-name"].is_string()
    );
    let labels = &template(deployment)["metadata"]["labels"];
    assert_eq!(labels["pod-identity.alibabacloud.com/injection"], "on");
}

#[test]
fn its_container_is_that_of_the_chart() {
    let manifests = rendered("kubectl", EXAMPLE);
    let (ours_here, _) = ours(of(&manifests, "Deployment"));
    let folder = super::example_chart();
    let path = folder.path().join("orders");
    let manifests = rendered("helm", &["template", "demo", path.to_str().unwrap()]);
    let (of_the_chart, _) = ours(of(&manifests, "Deployment"));
    let sorted = |container: &Value| {
        let mut container = container.clone();
        for list in ["env", "volumeMounts"] {
            container[list].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
        container
    };
    assert_eq!(sorted(ours_here), sorted(of_the_chart));
}

#[test]
fn every_kind_in_every_style() {
    let kinds =
        ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Rollout"];
    let mut files = Vec::new();
    for kind in kinds {
        // JSON is YAML in flow style, too; a name with .yaml and no quotes is what people write by hand.
        let json = app(kind, "json").to_string();
        let flow = app(kind, "flow").to_string().replace('"', "").replace(':', ": ");
        let flow = flow.replace("registry.example.com/own: 1", "registry.example.com/own");
        let flow = flow.replace("tollgate/sidecar: true", "tollgate/sidecar: \"true\"");
        files.push((format!("{kind}.json"), json));
        files.push((format!("{kind}.yaml"), flow));
    }
    let block = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: block\n  labels: # ours\n    \
                 tollgate/sidecar: \"true\"\nspec:\n  selector:\n    matchLabels: {app: block} # a comment\n  \
                 template:\n    metadata:\n      labels: {app: block}\n    spec:\n      containers:\n        \
                 - name: own # a comment\n          image: own\n";
    files.push(("block.yaml".to_owned(), block.to_owned()));
    let other = app("Deployment", "other").to_string().replace("tollgate/sidecar", "unrelated");
    files.push(("other.json".to_owned(), other));
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let folder = kustomization(&files, &["../sidecar", "../secret"]);
    let manifests = rendered("kubectl", &["kustomize", &shop(&folder)]);
    let map = &of(&manifests, "ConfigMap")["metadata"]["name"];
    let mut patched = 0;
    for manifest in manifests.iter().filter(|manifest| manifest["kind"] != "ConfigMap") {
        let (kind, name) = (&manifest["kind"], manifest["metadata"]["name"].as_str().unwrap());
        let pod = &template(manifest)["spec"];
        let names: Vec<_> = containers(pod).map(|container| &container["name"]).collect();
        let labels = &manifest["metadata"]["labels"];
        assert!(labels["tollgate/renamed"].is_null(), "{kind} {name}: {labels}");
        if name == "eu-other" {
            assert_eq!(names, ["before", "own"]);
            continue;
        }
        let own = if name == "eu-block" {
            &["tollgate", "own"][..]
        } else {
            &["before", "tollgate", "own"]
        };
        assert_eq!(names, own, "{kind} {name}");
        assert_eq!(template(manifest)["metadata"]["labels"]["tollgate/name"], "sidecar");
        assert_eq!(template(manifest)["metadata"]["labels"]["app"], name.trim_start_matches("eu-"));
        let volumes = pod["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), if name == "eu-block" { 5 } else { 6 }, "{kind} {name}");
        grace(pod, 30);
        // The key is a Secret's, which keeps its name.
        let (container, _) = ours(manifest);
        let set = super::variables(container);
        assert_eq!(set["TOLLGATE__KEYS__SOURCE"], "file");
        let mounts = container["volumeMounts"].as_array().unwrap().iter();
        let mut at = mounts.filter(|mount| mount["mountPath"] == set["TOLLGATE__KEYS__PATH"]);
        let volume = volumes.iter().find(|volume| volume["name"] == "tollgate-key").unwrap();
        assert_eq!((at.next().unwrap()["name"].as_str(), at.next()), (Some("tollgate-key"), None));
        assert_eq!(volume["secret"]["secretName"], "tollgate");
        // Kustomize knows where a Kubernetes kind names a ConfigMap, and not where Argo's does.
        let config = volumes.iter().find(|volume| volume["name"] == "tollgate-config").unwrap();
        assert!(kind == "Rollout" || &config["configMap"]["name"] == map, "{kind}: {config}");
        patched += 1;
    }
    assert_eq!(patched, 2 * kinds.len() + 1);
}

#[test]
fn it_fails_where_it_patches_nothing() {
    let fails = |files: &[(&str, String)], components: &[&str], words: &str| {
        let folder = kustomization(files, components);
        let Output { status, stderr, .. } = tool("kubectl", &["kustomize", &shop(&folder)]);
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert!(!status.success() && said.contains(words), "{said}");
    };
    let labelled = app("Deployment", "orders").to_string();
    let unlabelled = labelled.replace("tollgate/sidecar", "unrelated");
    let none = "no-workload-has-the-label-tollgate-sidecar-true";
    fails(&[("app.json", unlabelled)], &["../sidecar"], none);
    fails(&[("app.json", labelled.replace("\"true\"", "\"false\""))], &["../sidecar"], none);
    fails(&[("app.json", labelled.clone())], &["../secret"], "unable to find field");
    // A kind that it does not patch.
    let service = json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]},
        "metadata": {"name": "orders", "labels": {"tollgate/sidecar": "true"}}});
    let files = [("app.json", labelled.clone()), ("service.json", service.to_string())];
    fails(&files, &["../sidecar"], "test failed");
    // Claims are a StatefulSet's.
    fails(&[("app.json", labelled)], &["../sidecar", "../claims"], "test failed");
    // The app's own claims are not replaced.
    let set = app("StatefulSet", "orders");
    let own = claimed(set.clone());
    let words = "testing value /spec/volumeClaimTemplates failed";
    fails(&[("app.json", own)], &["../sidecar", "../claims"], words);
    let words = "doc is missing path";
    fails(&[("app.json", set.to_string())], &["../sidecar", "../claims/added"], words);
}

#[test]
fn claims_and_a_monitor() {
    let set = app("StatefulSet", "orders").to_string();
    let folder = kustomization(&[("app.json", set)], &["../sidecar", "../claims", "../monitor"]);
    let manifests = rendered("kubectl", &["kustomize", &shop(&folder)]);
    let set = of(&manifests, "StatefulSet");
    let (container, pod) = ours(set);
    let variables = super::variables(container);
    assert_eq!(variables["TOLLGATE__SPOOL__LIFETIME"], "volume");
    let claim = &set["spec"]["volumeClaimTemplates"][0];
    let needed = 2 * bytes(&json!(variables["TOLLGATE__SPOOL__MAX_BYTES"])) + (128 << 20);
    assert!(needed < bytes(&claim["spec"]["resources"]["requests"]["storage"]));
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume["name"] != claim["metadata"]["name"]));
    assert_eq!(claim["metadata"]["name"], "tollgate-spool");
    assert_eq!(pod["securityContext"]["fsGroup"], 65_532);
    assert!(container["resources"]["requests"]["ephemeral-storage"].is_null());
    // It scrapes these pods, and none that a chart's monitor scrapes.
    let wanted = &of(&manifests, "PodMonitor")["spec"]["selector"]["matchLabels"];
    assert_eq!(wanted, &json!({"tollgate/name": "sidecar"}));
    assert_eq!(template(set)["metadata"]["labels"]["tollgate/name"], "sidecar");
    let gateway = helm(&[]);
    assert_ne!(template(workload(&gateway))["metadata"]["labels"]["tollgate/name"], "sidecar");
    assert!(root().join("deploy/kustomize/monitor").is_dir());

    // Beside the app's own claims, the same.
    let own = claimed(app("StatefulSet", "orders"));
    let folder = kustomization(&[("app.json", own)], &["../sidecar", "../claims/added"]);
    let manifests = rendered("kubectl", &["kustomize", &shop(&folder)]);
    let added = of(&manifests, "StatefulSet");
    assert_eq!(added["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "own");
    assert_eq!(&added["spec"]["volumeClaimTemplates"][1], claim);
    assert_eq!(added["spec"]["template"], set["spec"]["template"]);
}
