//! What Helm prints after an installation is true of what it has installed.

use super::{CHART, helm, of};
use crate::support::manifests::tool;
use serde_json::json;

fn notes(flags: &[&str]) -> String {
    let said = tool("helm", &[&["install", "demo", CHART, "--dry-run=client"], flags].concat());
    let text = String::from_utf8(said.stdout).unwrap();
    let (_, notes) = text.split_once("NOTES:").unwrap_or_else(|| {
        panic!("no notes: {text}{}", String::from_utf8_lossy(&said.stderr));
    });
    notes.to_owned()
}

#[test]
fn the_next_steps() {
    let said = notes(&["--set", "service.port=8000,secret=tollgate"]);
    for words in [
        "http://demo-tollgate:8000/publish/TopicA",
        "helm test demo",
        "kubectl create secret generic tollgate",
        "post-cn-0pp12gl0000",
        "TOLLGATE__CEILINGS__ACCOUNT=500",
        "as long as its pod",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let said = notes(&["--set", "spool.volume=claims"]);
    assert!(said.contains("scale-down") && !said.contains("create secret"), "{said}");
    assert!(said.contains("pod-identity.alibabacloud.com/role-name"), "what auto needs: {said}");
    assert!(notes(&["--set", "mode=monitoring"]).contains("once"));

    let sidecar = "mode=sidecar,workload=orders";
    let said = notes(&["--set", sidecar]);
    assert!(said.contains("orders publishes to http://127.0.0.1:15080/publish/<topic>."), "{said}");
    let socket = format!("{sidecar},publish.listen=unix:/run/tollgate/publish.sock");
    let said = notes(&["--set", &socket]);
    let words = "publishes to unix:/run/tollgate/publish.sock: /publish/<topic>.";
    assert!(said.contains(words), "{said}");
    // A message in Redis lives on.
    let redis = "extraEnv[0].name=TOLLGATE__FLEET__URL,extraEnv[0].value=redis://redis,\
                 extraEnv[1].name=TOLLGATE__SPOOL__STORE,extraEnv[1].value=redis";
    let said = notes(&["--set", redis]);
    assert!(!said.contains("as long as its pod"), "{said}");
}

/// The chart does not see into a map of yours, and claims nothing of it.
#[test]
fn of_a_map_of_yours() {
    let mine = "existingConfigMap=mine,spool.volume=claim,spool.claim=spool";
    let policy = |set: &str| {
        let manifests = helm(&["--set", set]);
        of(&manifests, "NetworkPolicy")["spec"]["egress"][1]["ports"].clone()
    };
    let of_a_pod = notes(&["--set", "existingConfigMap=mine,mode=sidecar,workload=orders"]);
    assert!(
        of_a_pod.contains("unless\ntollgate.toml in the ConfigMap mine says otherwise"),
        "{of_a_pod}"
    );
    assert!(!of_a_pod.contains("egressPorts"), "a sidecar has no policy of ours: {of_a_pod}");
    let said = notes(&["--set", mine]);
    assert!(said.contains("add 80 to networkPolicy.egressPorts."), "{said}");
    for claimed in ["auto", "instance_id", "create secret"] {
        assert!(!said.contains(claimed), "{claimed}: {said}");
    }
    assert!(said.contains("keys.source of tollgate.toml in the ConfigMap mine says"), "{said}");
    assert_eq!(policy(mine), json!([{"port": 443}]), "no metadata service that nothing names");
    // What a value decides is known.
    let secret = format!("{mine},secret=tollgate");
    let said = notes(&["--set", &secret]);
    assert!(said.contains("in the Secret tollgate") && !said.contains("does not see"), "{said}");
    let machine = format!("{mine},extraEnv[0].name=TOLLGATE__KEYS__SOURCE,extraEnv[0].value=ecs");
    let said = notes(&["--set", &machine]);
    assert!(!said.contains("keys.source of tollgate.toml"), "{said}");
    assert_eq!(policy(&machine), json!([{"port": 443}, {"port": 80}]));
}
