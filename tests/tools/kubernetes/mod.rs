//! What `deploy/` has for Kubernetes renders with Kustomize's and Helm's own code, is valid in four
//! versions, keeps to the restricted profile, and carries a configuration that tollgate takes.

mod chart;
mod component;
mod documents;
mod keyring;
mod monitoring;
mod notes;
mod readme;
mod refusals;
mod scraped;
mod sidecars;
mod upgrade;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::manifests::{containers, not_restricted, of, rendered, root, tool};
use crate::support::secrets::SearchedNow as _;
use serde_json::{Value, json};
use tempfile::TempDir;

const CHART: &str = "deploy/helm/tollgate";

/// What the chart renders with these flags, valid.
fn helm(more: &[&str]) -> Vec<Value> {
    rendered("helm", &[&["template", "demo", CHART, "--namespace", "shop"], more].concat())
}

/// The same with these values, as YAML.
fn helm_with(values: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values).unwrap();
    helm(&["--values", file.path().to_str().unwrap()])
}

/// The chart does not render, and says these words.
fn refuses(flags: &[&str], words: &str) {
    let refused = tool("helm", &[&["template", "demo", CHART], flags].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains(words), "{flags:?}: {said}");
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn copy(from: &str, to: &Path) {
    let copied = Command::new("cp").arg("-rL").arg(root().join(from)).arg(to).status().unwrap();
    assert!(copied.success());
}

/// The example's chart with this chart as its dependency, as `helm dependency build` puts it there.
pub(super) fn example_chart() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let example = folder.path().join("orders");
    copy("deploy/helm/example", &example);
    std::fs::create_dir(example.join("charts")).unwrap();
    copy(CHART, &example.join("charts/tollgate"));
    folder
}

/// The pod template of a workload of any kind.
pub(super) fn template(workload: &Value) -> &Value {
    match workload["kind"].as_str() {
        Some("CronJob") => &workload["spec"]["jobTemplate"]["spec"]["template"],
        _ => &workload["spec"]["template"],
    }
}

/// Tollgate's own container, and its pod.
pub(super) fn ours(workload: &Value) -> (&Value, &Value) {
    let pod = &template(workload)["spec"];
    let mut ours = containers(pod).filter(|container| container["name"] == "tollgate");
    (ours.next().expect("tollgate is in the pod"), pod)
}

fn variables(container: &Value) -> BTreeMap<&str, &str> {
    let set = container["env"].as_array().unwrap().iter();
    set.map(|set| (set["name"].as_str().unwrap(), set["value"].as_str().unwrap())).collect()
}

/// The bytes of a quantity such as 1Gi.
fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap();
    let number = text.trim_end_matches("MiB").trim_end_matches("Mi").trim_end_matches("Gi");
    let unit = if text.ends_with("Gi") { 1 << 30 } else { 1 << 20 };
    number.parse::<u64>().unwrap() * unit
}

/// The pod is restricted, nothing but volumes is written, the spool fits its volume, and the configuration
/// holds with what the container sets over it.
fn fits(manifests: &[Value], workload: &Value) {
    let (container, pod) = ours(workload);
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
    // Each mount is a volume's or a claim's, and each volume of ours is mounted.
    let none = Vec::new();
    let volumes = pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]);
    let claims = workload["spec"]["volumeClaimTemplates"].as_array().unwrap_or(&none).iter();
    let volumes: Vec<_> = volumes.chain(claims.clone().map(|c| &c["metadata"]["name"])).collect();
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert!(volumes.contains(&&mount["name"]), "{mount}");
    }
    let ours = volumes.iter().filter(|name| name.as_str().unwrap().starts_with("tollgate-"));
    assert_eq!(ours.count(), mounts.len());

    // Twice the messages, 32 MiB of segments, 96 MiB of the ledger, and 5 % for the file system.
    let set = variables(container);
    let max = bytes(&json!(set["TOLLGATE__SPOOL__MAX_BYTES"]));
    let needed = (2 * max + (128 << 20)) * 100 / 95;
    let volume = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "tollgate-spool");
    let limit = volume.map(|volume| &volume["emptyDir"]["sizeLimit"]).filter(|l| !l.is_null());
    if let Some(limit) = limit {
        assert!(needed <= bytes(limit) && needed > bytes(limit) - (4 << 20), "{max} in {limit}");
        assert_eq!(&container["resources"]["requests"]["ephemeral-storage"], limit);
        // It would hold for the whole pod, and the app has written something, too.
        assert!(container["resources"]["limits"]["ephemeral-storage"].is_null());
        assert_eq!(set["TOLLGATE__SPOOL__LIFETIME"], "pod");
    } else {
        for claim in claims {
            let size = bytes(&claim["spec"]["resources"]["requests"]["storage"]);
            assert!(needed <= size, "{max} in {claim}");
        }
        assert!(container["resources"]["requests"]["ephemeral-storage"].is_null());
        assert_eq!(set["TOLLGATE__SPOOL__LIFETIME"], "volume");
        assert_eq!(pod["securityContext"]["fsGroup"], 65_532, "the volume is ours to write");
    }

    let checked = check(manifests, container);
    // Probes and monitors ask where it listens, not on the loopback.
    assert!(checked.contains("[::]:9464"), "{checked}");
}

/// What `tollgate check` prints of the configuration, with the container's variables.
fn check(manifests: &[Value], container: &Value) -> String {
    let mounted = container["volumeMounts"].as_array().unwrap().iter();
    assert!(mounted.clone().any(|mount| mount["mountPath"] == "/etc/tollgate"));
    let mut maps = manifests.iter().filter(|manifest| manifest["kind"] == "ConfigMap");
    let config = maps.find_map(|map| map["data"]["tollgate.toml"].as_str()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config).unwrap();
    assert_eq!(container["args"], json!(["serve", "--config", "/etc/tollgate/tollgate.toml"]));
    let checked = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["check", "--config"])
        .arg(file.path())
        .envs(variables(container))
        .searched_now()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    String::from_utf8(checked.stdout).unwrap()
}

/// From SIGTERM on: what the app needs, what tollgate delivers in, and five seconds to end.
fn grace(pod: &Value, app: u64) {
    let container = containers(pod).find(|c| c["name"] == "tollgate").unwrap();
    let set = variables(container);
    let seconds = |key: &str| set.get(key).map_or(0, |s| s.trim_end_matches('s').parse().unwrap());
    let (accept, grace): (u64, u64) =
        (seconds("TOLLGATE__DRAIN__ACCEPT_FOR"), seconds("TOLLGATE__DRAIN__GRACE"));
    assert_eq!(pod["terminationGracePeriodSeconds"], app + accept + grace + 5);
    // A predecessor may hold the spool for that long, and 20 s more.
    let startup = &container["startupProbe"];
    assert_eq!(startup["periodSeconds"], 1);
    assert!(startup["failureThreshold"].as_u64().unwrap() > accept + grace + 60);
}

#[test]
fn the_dockerfile() {
    let judge = root().join("target/test-venv/bin/hadolint");
    let judged = Command::new(judge).arg(root().join("deploy/Dockerfile")).searched_now();
    let judged = judged.expect("tests/setup.sh has made target/test-venv");
    let said = String::from_utf8_lossy(&judged.stdout);
    assert!(judged.status.success() && said.is_empty(), "{said}");
}

/// The one workload of a chart.
fn workload(manifests: &[Value]) -> &Value {
    let kinds = ["Deployment", "StatefulSet"];
    let kind = kinds.iter().find(|kind| manifests.iter().any(|m| m["kind"] == **kind));
    of(manifests, kind.expect("a workload"))
}
