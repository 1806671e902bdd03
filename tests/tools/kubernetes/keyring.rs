//! The chart as a keyring.

use std::process::Command;

use super::{CHART, helm, helm_with, of, ours, refuses, template, variables};
use crate::support::manifests::{not_restricted, tool};
use crate::support::secrets::SearchedNow as _;
use serde_json::{Value, json};

const KEYRING: &str = r#"
mode: keyring
config: |
  [keyring]
  max_callers = 50
keyring:
  roleArn: acs:ram::1234567890123456:role/tollgate
  tlsSecret: certificate
  callers:
    - { name: shop, subject: "system:serviceaccount:shop:*", instances: [post-cn-1], topics: [Alarm] }
    - { name: old, token_file: /tokens/old, policy: '{"Version":"1","Statement":[{"Effect":"Allow","Action":"mq:SendMessage","Resource":"<*>"}]}' }
"#;

/// `tollgate check` as the hook runs it: the exit code, and what it says.
fn checked(manifests: &[Value]) -> (bool, String) {
    let maps = manifests.iter().filter(|manifest| manifest["kind"] == "ConfigMap");
    let texts: Vec<_> = maps.map(|map| map["data"]["tollgate.toml"].as_str().unwrap()).collect();
    assert!(texts.len() == 2 && texts[0] == texts[1], "the hook checks another file");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tollgate.toml");
    std::fs::write(&file, texts[0]).unwrap();
    let hook = &template(of(manifests, "Job"))["spec"]["containers"][0];
    let args = hook["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
    let here = file.display().to_string();
    let args = args.map(|arg| arg.replace("/etc/tollgate/tollgate.toml", &here));
    let check = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(args)
        .envs(variables(hook))
        .searched_now();
    let check = check.unwrap();
    let said = [&check.stdout[..], &check.stderr].concat();
    (check.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn a_keyring() {
    let manifests = helm_with(KEYRING);
    // No role, no binding, no metrics, and nothing of a gateway.
    let mut kinds: Vec<_> = manifests.iter().map(|m| m["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    let wanted = [
        "ConfigMap",
        "ConfigMap",
        "Deployment",
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    ];
    assert_eq!(kinds, wanted);
    let deployment = of(&manifests, "Deployment");
    assert_eq!(deployment["spec"]["replicas"], 2);
    // It reads its callers once: a change of them restarts it.
    let sum = |all: &[Value]| {
        let template = &of(all, "Deployment")["spec"]["template"];
        template["metadata"]["annotations"]["tollgate/config-checksum"].as_str().unwrap().to_owned()
    };
    let other = helm_with(&KEYRING.replace("max_callers = 50", "max_callers = 51"));
    assert_ne!(sum(&manifests), sum(&other));
    let (container, pod) = ours(deployment);
    assert_eq!(not_restricted(pod), Vec::<String>::new());
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["args"], json!(["keyring", "--config", "/etc/tollgate/tollgate.toml"]));
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["serviceAccountName"], of(&manifests, "ServiceAccount")["metadata"]["name"]);
    for (probe, path) in
        [("startupProbe", "/livez"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")]
    {
        let wanted = json!({"path": path, "port": "keys", "scheme": "HTTPS"});
        assert_eq!(container[probe]["httpGet"], wanted);
    }
    assert_eq!(container["ports"], json!([{"name": "keys", "containerPort": 9_465}]));
    let port = &of(&manifests, "Service")["spec"]["ports"][0];
    assert_eq!((&port["port"], &port["targetPort"]), (&json!(9_465), &json!("keys")));
    let budget = &of(&manifests, "PodDisruptionBudget")["spec"];
    let policy = &of(&manifests, "NetworkPolicy")["spec"];
    let labels = &template(deployment)["metadata"]["labels"];
    for selector in [&budget["selector"], &policy["podSelector"], &deployment["spec"]["selector"]] {
        for (label, value) in selector["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[label], value);
        }
    }
    assert_eq!(policy["ingress"].as_array().unwrap().len(), 1);
    assert_eq!(policy["ingress"][0]["ports"], json!([{"port": "keys"}]));
    // STS, the API server behind its Service, and the metadata service: keys.source is "auto".
    let ports = json!([{"port": 443}, {"port": 80}, {"port": 6_443}]);
    assert_eq!(policy["egress"][1]["ports"], ports);

    // What the files of the configuration name is mounted, and no mount is in another, which is read-only.
    let set = variables(container);
    let mounts = container["volumeMounts"].as_array().unwrap();
    let paths: Vec<_> = mounts.iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
    for path in &paths {
        let inside = |other: &&&str| path.strip_prefix(**other).is_some_and(|p| p.starts_with('/'));
        assert_eq!(paths.iter().find(inside), None, "{path}");
    }
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    for file in
        [set["TOLLGATE__KEYRING__CERTIFICATE"], set["TOLLGATE__KEYRING__PRIVATE_KEY"], token]
    {
        let at = file.rsplit_once('/').unwrap().0;
        let mount = mounts.iter().find(|mount| mount["mountPath"] == at).expect(file);
        assert!(pod["volumes"].as_array().unwrap().iter().any(|v| v["name"] == mount["name"]));
    }
    assert_eq!(set["TOLLGATE__KEYS__SOURCE"], "auto");

    let (valid, said) = checked(&manifests);
    assert!(valid, "{said}");
    for words in ["system:serviceaccount:shop:*", "openid/v1/jwks", "/tokens/old", "[::]:9465"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // A wrong caller stops the upgrade.
    let wrong = KEYRING.replace("post-cn-1", "post cn 1");
    let (valid, said) = checked(&helm_with(&wrong));
    assert!(!valid && said.contains("keyring.callers"), "{said}");
}

#[test]
fn values_of_a_keyring() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let given = "mode=keyring,keyring.roleArn=acs:ram::1:role/r,keyring.tlsSecret=tls,keyring.callers[0].name=shop";
    let subject = format!("{given},keyring.callers[0].subject=s");
    // An account of yours, a lasting key, and callers of two issuers.
    let more = format!(
        "{subject},serviceAccount.name=mine,secret=key,keyring.callers[0].issuer=https://one,\
         keyring.issuers[0].issuer=https://one,keyring.issuers[0].jwks=http://127.0.0.1:8001/keys,\
         keyring.issuers[1].issuer=https://two,keyring.issuers[1].jwks=https://two:7443/keys"
    );
    let manifests = helm(&["--set", &more]);
    assert!(manifests.iter().all(|manifest| manifest["kind"] != "ServiceAccount"));
    let (container, pod) = ours(of(&manifests, "Deployment"));
    assert_eq!(pod["serviceAccountName"], "mine");
    assert_eq!(variables(container)["TOLLGATE__KEYS__SOURCE"], "file");
    let ports = &of(&manifests, "NetworkPolicy")["spec"]["egress"][1]["ports"];
    assert_eq!(ports, &json!([{"port": 443}, {"port": 8_001}, {"port": 7_443}]));
    let config = manifests.iter().find_map(|m| m["data"]["tollgate.toml"].as_str()).unwrap();
    assert!(config.contains("\nissuer = \"https://one\"\nname = \"shop\"\n"), "{config}");

    for (wrong, words) in [
        ("mode=keyring", "roleArn"),
        (given, "callers"),
        (&*subject.replace("tlsSecret=tls", "tlsSecret="), "tlsSecret"),
        (&*subject.replace(":role/r", ""), "roleArn"),
        (&*format!("{subject},keyring.callers[0].token_file=/t"), "callers"),
        (&*format!("{subject},keyring.callers[0].topic=T"), "topic"),
        (&*format!("{subject},existingConfigMap=mine"), "existingConfigMap"),
        (&*format!("{subject},autoscaling.enabled=true"), "enabled"),
        (&*format!("{subject},monitoring.monitor=PodMonitor"), "monitor"),
        ("keyring.tlsSecret=tls", "tlsSecret"),
    ] {
        refuses(&["--set", wrong], words);
    }
    let notes = tool(
        "helm",
        &["install", "demo", CHART, "-n", "infra", "--dry-run=client", "--set", &subject],
    );
    let notes = String::from_utf8(notes.stdout).unwrap();
    assert!(notes.contains("https://demo-tollgate.infra.svc:9465/credentials"), "{notes}");
    for (line, words) in [
        ("[[keyring.callers]]\nname = \"x\"", "set keyring.issuers and keyring.callers"),
        ("[keyring]\nrole_arn = \"acs:ram::1:role/x\"", "set keyring.roleArn"),
        ("[keyring]\nlisten = \"0.0.0.0:1\"", "port 9465"),
    ] {
        std::fs::write(file.path(), line).unwrap();
        let config = format!("config={}", file.path().display());
        refuses(&["--set", &subject, "--set-file", &config], words);
    }
}
