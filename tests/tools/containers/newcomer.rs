//! A newcomer's path, timed: what docs/kubernetes.md says to write, rendered, run as a kubelet runs it, and one message
//! published as the document says. Only the URLs of what a cluster has are this machine's.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::drills::Provider;
use super::kubelet::{Cluster, passes, port};
use super::node::{Node, Pod};
use super::say;
use crate::kubernetes::{example_chart, ours, template};
use crate::support::http::BOUND;
use crate::support::manifests::{containers, of, root, tool};
use crate::support::until;

/// One way to the first message.
struct Path {
    what: &'static str,
    lines: usize,
    rendered: (Vec<Value>, Duration),
    release: &'static str,
}

/// What a tool renders, and how long it takes. Other tests hold it against the schemas.
fn rendered(name: &str, args: &[&str]) -> (Vec<Value>, Duration) {
    let begun = Instant::now();
    let output = tool(name, args);
    let took = begun.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (crate::support::manifests::judged(&String::from_utf8(output.stdout).unwrap()), took)
}

fn kustomize() -> Path {
    let text = std::fs::read_to_string(root().join("deploy/kustomize/example/kustomization.yaml"));
    let text = text.unwrap();
    // What a kustomization without tollgate has.
    let own = ["#", "apiVersion:", "kind:", "namespace:", "namePrefix:", "resources:"];
    let lines = text.lines().filter(|line| own.iter().all(|own| !line.starts_with(own))).count();
    let rendered = rendered("kubectl", &["kustomize", "deploy/kustomize/example"]);
    Path { what: "sidecar, Kustomize, RRSA", lines, rendered, release: "" }
}

/// The example's chart with the three includes alone: without the fourth Kubernetes' own grace period holds.
fn chart() -> Path {
    let folder = example_chart();
    let workload = folder.path().join("orders/templates/deployment.yaml");
    let text = std::fs::read_to_string(&workload).unwrap();
    let is_ours = |line: &&str| line.contains(".Subcharts.tollgate");
    let least: Vec<_> = text.lines().filter(|line| !line.contains("gracePeriod")).collect();
    let lines = least.iter().copied().filter(is_ours).count();
    std::fs::write(&workload, least.join("\n")).unwrap();
    let at = folder.path().join("orders");
    let rendered = rendered("helm", &["template", "demo", at.to_str().unwrap()]);
    Path { what: "sidecar, Helm, RRSA", lines, rendered, release: "" }
}

fn gateway() -> Path {
    // Without RRSA: the key is in a Secret.
    let chart = ["template", "demo", "deploy/helm/tollgate", "--set", "secret=tollgate"];
    let rendered = rendered("helm", &chart);
    Path { what: "gateway, Helm, Secret", lines: 0, rendered, release: "demo" }
}

/// The URL that docs/kubernetes.md has for an app, of a sidecar or of a gateway.
fn url(release: &str) -> String {
    let document = std::fs::read_to_string(root().join("docs/kubernetes.md")).unwrap();
    let line = document.lines().find(|line| line.starts_with("An app publishes to ")).unwrap();
    let mut urls = line.split('`').filter(|word| word.starts_with("http"));
    let url = urls.nth(usize::from(!release.is_empty())).unwrap();
    url.replace("NAME", release).replace("<topic>", "TopicA")
}

/// Publishes from the app's place: the sidecar's pod, or through the gateway's Service.
fn publish(pod: &Pod<'_>, path: &Path, container: &Value, workload: &Value, body: &str) {
    let url = url(path.release);
    let mut words = vec!["curl", "-sS", "--fail-with-body", "--max-time", "30", "-d", body, &url];
    let to;
    if !path.release.is_empty() {
        let host = url.trim_start_matches("http://").split('/').next().unwrap();
        let is_it = |m: &&Value| m["kind"] == "Service" && m["metadata"]["name"] == host;
        let service = path.rendered.0.iter().find(is_it).unwrap_or_else(|| panic!("no {host}"));
        let labels = &template(workload)["metadata"]["labels"];
        for (label, value) in service["spec"]["selector"].as_object().unwrap() {
            assert_eq!(&labels[label], value, "the Service selects no pod");
        }
        let behind = &service["spec"]["ports"][0];
        assert_eq!(behind["port"], 80);
        to = format!("{host}:80:{}", pod.at(port(container, &behind["targetPort"])));
        words.extend(["--connect-to", &to]);
    }
    let said = pod.app(&words);
    assert!(said.status.success(), "{said:?}");
}

/// What `helm test` runs, container by container, in a pod of its own.
async fn helm_test(node: &Node, provider: &Provider, gateway: &Pod<'_>, manifests: &[Value]) {
    let spec = &of(manifests, "Pod")["spec"];
    let mut cluster = Cluster::of(node, provider).with_secret("tollgate", super::kubelet::KEY);
    // The Service without an address of its own is its pods' address.
    let services = manifests.iter().filter(|m| m["kind"] == "Service");
    let headless = services.clone().find(|m| m["spec"]["clusterIP"] == "None").unwrap();
    let address = gateway.at(1);
    let address = address.trim_start_matches('[').split(']').next().unwrap();
    cluster.resolves(headless["metadata"]["name"].as_str().unwrap(), address);
    let pod = node.pod();
    for container in containers(spec) {
        let name = container["name"].as_str().unwrap();
        let ended = cluster.start_container(&pod, manifests, spec, name).ended(BOUND).await;
        let ended = ended.unwrap_or_else(|| panic!("{name} does not end"));
        assert_eq!(ended.code, 0, "helm test, {name}: {}", ended.log);
    }
}

/// From the rendered manifests to the first message. Returns a row of the table.
async fn walk(node: &Node, path: &Path) -> String {
    let provider = Provider::start("[]").await;
    // The one Secret that the document's command makes.
    let cluster = Cluster::of(node, &provider).with_secret("tollgate", super::kubelet::KEY);
    let (manifests, took) = &path.rendered;
    let workload = of(manifests, "Deployment");
    let (container, _) = ours(workload);
    let pod = node.pod();
    let begun = Instant::now();
    let mut running = cluster.start(&pod, manifests, workload);
    passes(&pod, &mut running, container, "startupProbe").await;
    passes(&pod, &mut running, container, "readinessProbe").await;
    let ready = begun.elapsed();
    let user = &container["securityContext"]["runAsUser"];
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    assert!(status.contains(&format!("Uid:\t{user}\t")), "{status}");
    publish(&pod, path, container, workload, "first");
    until("it is delivered", async || provider.has().await.contains("first")).await;
    let first = *took + begun.elapsed();
    if !path.release.is_empty() {
        helm_test(node, &provider, &pod, manifests).await;
    }
    assert_eq!(running.stop(BOUND).await.expect("it ends in its grace").code, 0);
    let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
    let [took, ready, first] = [took, &ready, &first].map(seconds);
    format!("| {} | {} | {took} | {ready} | {first} |", path.what, path.lines)
}

/// The last seconds of a pod whose provider hangs: the app has had its time, and what the manifest leaves the sidecar is
/// enough to end by itself and to report what it could not deliver.
async fn stops_in_its_time(node: &Node, path: &Path) {
    let provider = Provider::start(r#"[{"latency":"10m"}]"#).await;
    let cluster = Cluster::of(node, &provider);
    let (manifests, _) = &path.rendered;
    let workload = of(manifests, "Deployment");
    let (container, spec) = ours(workload);
    let pod = node.pod();
    let mut running = cluster.start(&pod, manifests, workload);
    passes(&pod, &mut running, container, "readinessProbe").await;
    let later = ["-H", "prefer: respond-async"];
    for n in 0..3 {
        let url = url("");
        let body = format!("late-{n}");
        let words = ["curl", "-sS", "--fail-with-body", "--max-time", "30", "-d", &body, &url];
        let said = pod.app(&[&words[..], &later].concat());
        assert!(said.status.success(), "{said:?}");
    }
    let whole = spec["terminationGracePeriodSeconds"].as_u64().unwrap();
    // The app's own, as every pod has it.
    let ended = running.stop(Duration::from_secs(whole - 30)).await;
    let ended = ended.expect("it was killed: the manifest leaves it too little time");
    assert_eq!(ended.code, 3, "three messages end with the pod: {}", ended.log);
    assert!(ended.log.contains("stopped with messages in a spool"), "{}", ended.log);
}

pub(super) async fn paths(node: &Node) {
    let [kustomize, chart, gateway] = [kustomize(), chart(), gateway()];
    assert_eq!((kustomize.lines, chart.lines), (3, 3), "docs/kubernetes.md says three");
    say("\n| path | lines | rendered in | ready in | first delivered after |");
    say("| --- | --- | --- | --- | --- |");
    for path in [&kustomize, &chart, &gateway] {
        say(&walk(node, path).await);
    }
    stops_in_its_time(node, &kustomize).await;
}
