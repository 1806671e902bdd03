#![allow(unreachable_pub, reason = "a module of one test")]
//! Manifests as Helm and Kustomize render them, held against Kubernetes' schemas.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::secrets::{SearchedNow as _, search};

/// The oldest that the chart names, two between, and the newest.
const VERSIONS: [&str; 4] = ["1.29", "1.30", "1.34", "1.37"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn said(tool: &str, output: &Output) -> String {
    search(output);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{tool}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub fn tool(name: &str, args: &[&str]) -> Output {
    let path = root().join("target/test-tools").join(name);
    let output = Command::new(&path).args(args).current_dir(root()).searched_now();
    output.unwrap_or_else(|error| panic!("{}: {error}: run tests/setup.sh", path.display()))
}

/// What a tool renders, as every version takes it.
pub fn rendered(name: &str, args: &[&str]) -> Vec<Value> {
    judged(&said(name, &tool(name, args)))
}

/// Manifests that every version takes.
pub fn judged(yaml: &str) -> Vec<Value> {
    let mut judge = Command::new(root().join("target/test-venv/bin/python"))
        .arg(root().join("tests/support/manifests.py"))
        .args(VERSIONS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tests/setup.sh has made target/test-venv");
    judge.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
    serde_json::from_str(&said("manifests.py", &judge.wait_with_output().unwrap())).unwrap()
}

/// The one of this kind.
pub fn of<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    let mut found = manifests.iter().filter(|manifest| manifest["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    first
}

/// All containers of a pod, those first that begin first.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let of = |key: &str| pod[key].as_array().into_iter().flatten();
    of("initContainers").chain(of("containers"))
}

/// What Pod Security's profile `restricted` forbids in this pod, as of Kubernetes 1.37.
pub fn not_restricted(pod: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut wants = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        wants(!pod[key].as_bool().unwrap_or(false), key.to_owned());
    }
    let allowed = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        for kind in kinds {
            wants(allowed.contains(&kind.as_str()), format!("volume {kind}"));
        }
    }
    for container in containers(pod) {
        let name = container["name"].as_str().unwrap();
        let (own, all) = (&container["securityContext"], &pod["securityContext"]);
        let either = |key: &str| if own[key].is_null() { &all[key] } else { &own[key] };
        wants(either("runAsNonRoot") == true, format!("{name}: may run as root"));
        wants(either("runAsUser") != 0, format!("{name}: runs as root"));
        wants(own["allowPrivilegeEscalation"] == false, format!("{name}: may escalate"));
        wants(own["privileged"] != true, format!("{name}: privileged"));
        wants(
            own["capabilities"]["drop"] == serde_json::json!(["ALL"]),
            format!("{name}: capabilities"),
        );
        wants(own["capabilities"]["add"].is_null(), format!("{name}: adds capabilities"));
        let seccomp = &either("seccompProfile")["type"];
        wants(seccomp == "RuntimeDefault" || seccomp == "Localhost", format!("{name}: seccomp"));
        let ports = container["ports"].as_array().into_iter().flatten();
        wants(ports.clone().all(|port| port["hostPort"].is_null()), format!("{name}: host port"));
    }
    wrong
}
