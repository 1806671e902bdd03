//! What `deploy/` has for Kubernetes renders with Kustomize's and Helm's own code, is valid in three
//! versions, keeps to the restricted profile, and carries a configuration that tollgate takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::manifests::{containers, not_restricted, of, rendered, root, tool};
use serde_json::{Value, json};

const CHART: &str = "deploy/helm/tollgate";

fn helm(more: &[&str]) -> Vec<Value> {
    rendered("helm", &[&["template", "demo", CHART], more].concat())
}

/// Tollgate's own container, and the pod.
fn ours(manifests: &[Value]) -> (&Value, &Value) {
    let pod = &of(manifests, "Deployment")["spec"]["template"]["spec"];
    let mut ours = containers(pod).filter(|container| container["name"] == "tollgate");
    (ours.next().expect("tollgate is in the pod"), pod)
}

/// The pod is restricted, nothing but volumes is written, and the configuration holds with what the
/// container sets over it.
fn fits(manifests: &[Value]) {
    let (container, pod) = ours(manifests);
    assert_eq!(not_restricted(pod), Vec::<String>::new());
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    let mounts: BTreeMap<_, _> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| (mount["mountPath"].as_str().unwrap(), mount["readOnly"] == true))
        .collect();
    let writable: Vec<_> = mounts.iter().filter(|(_, read)| !**read).map(|(at, _)| *at).collect();
    assert_eq!(writable, ["/run/tollgate", "/var/lib/tollgate"]);
    // Each mount is a volume's, and each volume of ours is mounted.
    let volumes = pod["volumes"].as_array().unwrap();
    let volumes: Vec<_> = volumes.iter().map(|volume| &volume["name"]).collect();
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert!(volumes.contains(&&mount["name"]), "{mount}");
    }
    assert_eq!(volumes.len(), mounts.len());

    let file = tempfile::NamedTempFile::new().unwrap();
    let config = &of(manifests, "ConfigMap")["data"]["tollgate.toml"];
    std::fs::write(file.path(), config.as_str().unwrap()).unwrap();
    let environment = container["env"].as_array().unwrap();
    let environment = environment
        .iter()
        .map(|set| (set["name"].as_str().unwrap(), set["value"].as_str().unwrap()));
    assert_eq!(container["args"], json!(["serve", "--config", "/etc/tollgate/tollgate.toml"]));
    let checked = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["check", "--config"])
        .arg(file.path())
        .envs(environment)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    // Probes and monitors ask where it listens, not on the loopback.
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(text.contains("[::]:9464"), "{text}");
}

#[test]
fn a_component_for_kustomize() {
    let manifests = rendered("kubectl", &["kustomize", "deploy/kustomize/example"]);
    fits(&manifests);
    let (container, pod) = ours(&manifests);
    assert_eq!(container["restartPolicy"], "Always", "a native sidecar");
    assert_eq!(pod["initContainers"].as_array().unwrap().len(), 1);
    // The app's own time, drain.grace, and five seconds.
    assert_eq!(pod["terminationGracePeriodSeconds"], 45);
    // What the example says one needs for it.
    let example = read("deploy/kustomize/example/kustomization.yaml");
    assert!(example.contains("components: [../sidecar]"));
}

#[test]
fn a_gateway() {
    let manifests = helm(&[]);
    fits(&manifests);
    let deployment = of(&manifests, "Deployment");
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
    for (manifest, selector) in [
        ("Deployment", "/spec/selector/matchLabels"),
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
    ] {
        let selector = of(&manifests, manifest).pointer(selector).unwrap().as_object().unwrap();
        assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{manifest}");
    }
    let (container, pod) = ours(&manifests);
    assert!(container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap() >= 5);
    assert_eq!(pod["terminationGracePeriodSeconds"], 30);
    let port = &of(&manifests, "Service")["spec"]["ports"][0];
    assert_eq!((&port["port"], &port["targetPort"]), (&json!(80), &json!("publish")));
}

#[test]
fn a_gateway_whose_spool_outlives_it() {
    let manifests = helm(&["--set", "spool.claim=spool"]);
    fits(&manifests);
    assert_eq!(of(&manifests, "Deployment")["spec"]["strategy"]["type"], "Recreate");
    let (_, pod) = ours(&manifests);
    assert_eq!(pod["securityContext"]["fsGroup"], 65_532, "the volume is ours to write");
}

#[test]
fn what_watches() {
    let flags = ["podMonitor", "rules", "dashboard"].map(|what| format!("monitoring.{what}=true"));
    let set: Vec<_> = flags.iter().flat_map(|flag| ["--set", flag.as_str()]).collect();
    let manifests = helm(&set);
    let monitor = of(&manifests, "PodMonitor");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["portNumber"], &endpoint["honorLabels"]), (&json!(9_464), &json!(true)));
    let labels = &of(&manifests, "Deployment")["spec"]["template"]["metadata"]["labels"];
    let wanted = &monitor["spec"]["selector"]["matchExpressions"][0]["key"];
    assert!(!labels[wanted.as_str().unwrap()].is_null(), "the monitor selects the pods");
    // The rules are those that promtool has tested.
    let rules = manifests.iter().filter(|manifest| manifest["kind"] == "PrometheusRule");
    let rules: Vec<_> = rules.map(|rule| rule["spec"]["groups"].as_array().unwrap()).collect();
    let alerts = rules.iter().flat_map(|groups| groups.iter());
    let alerts = alerts.flat_map(|group| group["rules"].as_array().unwrap());
    let named = alerts.filter(|rule| !rule["alert"].is_null()).count();
    assert_eq!(named, read("deploy/prometheus/alerts.yaml").matches("- alert:").count());
    let mut maps = manifests.iter().filter(|manifest| manifest["kind"] == "ConfigMap");
    let dashboard = maps.find_map(|map| map["data"]["tollgate.json"].as_str()).unwrap();
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    assert_eq!(
        dashboard,
        serde_json::from_str::<Value>(&read("deploy/grafana/tollgate.json")).unwrap()
    );
}

#[test]
fn a_sidecar_by_three_lines_of_a_chart() {
    // As `helm dependency build` would put it there.
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &Path| {
        let copied = Command::new("cp").arg("-rL").arg(root().join(from)).arg(to).status().unwrap();
        assert!(copied.success());
    };
    let example = folder.path().join("example");
    copy("deploy/helm/example", &example);
    std::fs::create_dir(example.join("charts")).unwrap();
    copy(CHART, &example.join("charts/tollgate"));
    let path = example.to_str().unwrap();
    let manifests = rendered("helm", &["template", "demo", path]);
    fits(&manifests);
    let (container, pod) = ours(&manifests);
    assert_eq!(container["restartPolicy"], "Always", "a native sidecar");
    assert!(container["ports"].as_array().unwrap().iter().all(|port| port["name"] != "publish"));
    assert_eq!(pod["initContainers"][0]["name"], "tollgate");
    // No gateway beside it.
    assert!(manifests.iter().all(|manifest| manifest["kind"] != "Service"));
    let linted = tool("helm", &["lint", "--strict", path]);
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
}

#[test]
fn the_chart_is_strict() {
    let linted = tool("helm", &["lint", "--strict", CHART]);
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
    for (wrong, words) in [
        ("mode=both", "mode"),
        ("conifg=x", "conifg"),
        ("gateway.replicas=0", "replicas"),
        ("spool.size=1", "size"),
        // Two processes cannot hold one spool.
        ("spool.claim=spool,gateway.replicas=2", "replicas"),
    ] {
        let refused = tool("helm", &["template", "demo", CHART, "--set", wrong]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(words), "{wrong}: {said}");
    }
}

#[test]
fn the_dockerfile() {
    let judge = root().join("target/test-venv/bin/hadolint");
    let judged = Command::new(judge).arg(root().join("deploy/Dockerfile")).output();
    let judged = judged.expect("tests/setup.sh has made target/test-venv");
    let said = String::from_utf8_lossy(&judged.stdout);
    assert!(judged.status.success() && said.is_empty(), "{said}");
}

/// The commands of the documents, in their order, on a copy of `deploy/`.
#[test]
fn what_the_documents_say() {
    let folder = tempfile::tempdir().unwrap();
    let copied =
        Command::new("cp").arg("-r").arg(root().join("deploy")).arg(folder.path()).status();
    assert!(copied.unwrap().success());
    std::fs::write(folder.path().join("my-values.yaml"), "account: shop\n").unwrap();
    let mut run = 0;
    for path in ["docs/operations.md", "deploy/helm/tollgate/README.md"] {
        let text = read(path);
        let commands = text.lines().filter_map(|line| line.strip_prefix("    "));
        for command in commands.filter(|line| !line.starts_with([' ', '{'])) {
            let words: Vec<_> = command.split(' ').collect();
            let mut args: Vec<&str> = words[1..].to_vec();
            match (words[0], args[0]) {
                // What would change a cluster is only rendered.
                ("helm", "install") => args[0] = "template",
                ("kubectl", "create") => args.extend(["--dry-run=client", "-o", "yaml"]),
                ("helm", "template" | "dependency") | ("kubectl", "kustomize") => {}
                ("make", target) => {
                    assert!(read("Makefile").contains(&format!("\n{target}:")), "{command}");
                    continue;
                }
                // Run on each configuration that is rendered.
                ("tollgate", "check") => continue,
                _ => panic!("{path} has a command that no test runs: {command}"),
            }
            args.iter_mut().filter(|arg| **arg == "NAME").for_each(|name| *name = "shop");
            let binary = root().join("target/test-tools").join(words[0]);
            let output =
                Command::new(binary).args(&args).current_dir(folder.path()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !output.stdout.is_empty(), "{command}: {said}");
            run += 1;
        }
    }
    assert!(run >= 6, "{run}");
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}
