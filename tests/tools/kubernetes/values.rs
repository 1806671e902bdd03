//! Each value of the chart arrives where it belongs, and what can be switched off is gone.

use std::collections::BTreeSet;

use super::{CHART, helm, helm_with, ours, template};
use crate::support::manifests::{not_restricted, tool};
use crate::support::secrets::SearchedNow as _;
use serde_json::{Value, json};

/// Every value that moves something, moved.
const ALL: &str = r#"
nameOverride: gate
image: { repository: registry.example.com/t, tag: v1, pullPolicy: Always }
imagePullSecrets: [{ name: pull }]
existingConfigMap: mine
restartOnChange: true
secret: ""
rrsa: { roleArn: "acs:ram::1:role/publisher", oidcProviderArn: "acs:ram::1:oidc-provider/ack-rrsa-c1" }
account: shop
publish: { port: 18080 }
resources: { requests: { cpu: "1", memory: 64Mi }, limits: { memory: 256Mi, ephemeral-storage: 2Gi } }
spool: { volume: emptyDir, size: 2Gi }
drainSeconds: 60
probes: { startup: { failureThreshold: 999 }, readiness: { periodSeconds: 7 }, liveness: { timeoutSeconds: 8 } }
securityContext: { runAsUser: 70000 }
podSecurityContext: { fsGroup: 70000, supplementalGroups: [1] }
extraEnv: [{ name: TOLLGATE__TELEMETRY__LEVEL, value: debug }, { name: TOLLGATE__FLEET__URL, valueFrom: { secretKeyRef: { name: redis, key: url } } }, { name: NODE, valueFrom: { fieldRef: { fieldPath: spec.nodeName } } }]
envFrom: [{ secretRef: { name: more } }]
extraVolumes: [{ name: ca, configMap: { name: ca } }]
extraVolumeMounts: [{ name: ca, mountPath: /ca, readOnly: true }]
extraObjects:
  - { apiVersion: v1, kind: ConfigMap, metadata: { name: "{{ .Release.Name }}-own" } }
  - |
    apiVersion: v1
    kind: Secret
    metadata: { name: {{ include "tollgate.fullname" . }}-own }
autoscaling: { enabled: true, minReplicas: 3, maxReplicas: 9, metrics: [{ type: Resource, resource: { name: memory, target: { type: Utilization, averageUtilization: 80 } } }], behavior: { scaleDown: { stabilizationWindowSeconds: 5 } } }
service: { type: LoadBalancer, port: 8000, annotations: { a: b }, labels: { c: d }, spec: { externalTrafficPolicy: Local } }
networkPolicy:
  enabled: true
  clients: [{ namespaceSelector: { matchLabels: { team: shop } } }]
  scrapers: [{ namespaceSelector: { matchLabels: { team: sre } } }]
  egressPorts: [6380]
  egress: [{ to: [{ ipBlock: { cidr: 10.0.0.0/8 } }] }]
podDisruptionBudget: { enabled: true, maxUnavailable: null, minAvailable: 50% }
serviceAccount: { create: true, annotations: { pod-identity.alibabacloud.com/role-name: publisher } }
podLabels: { pod-identity.alibabacloud.com/injection: "on" }
podAnnotations: { note: here }
nodeSelector: { disk: ssd }
tolerations: [{ key: k, operator: Exists }]
affinity: { podAntiAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [] } }
topologySpreadConstraints: [{ maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway }]
priorityClassName: high
monitoring: { monitor: ServiceMonitor, labels: { release: prometheus }, interval: 30s, cluster: eu-1 }
"#;

#[test]
fn every_value_arrives() {
    let manifests = helm_with(ALL);
    let named = |kind: &str, name: &str| {
        let is = |m: &&Value| m["kind"] == kind && m["metadata"]["name"] == name;
        manifests.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let deployment = named("Deployment", "demo-gate");
    assert!(deployment["spec"]["replicas"].is_null(), "the autoscaler's");
    let scaler = &named("HorizontalPodAutoscaler", "demo-gate")["spec"];
    assert_eq!((&scaler["minReplicas"], &scaler["maxReplicas"]), (&json!(3), &json!(9)));
    let (target, metric) = (&scaler["scaleTargetRef"], &scaler["metrics"][0]["resource"]);
    assert_eq!((&target["name"], &metric["name"]), (&json!("demo-gate"), &json!("memory")));
    assert_eq!(scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 5);

    let (container, pod) = ours(deployment);
    assert_eq!(not_restricted(pod), Vec::<String>::new());
    let image = (&container["image"], &container["imagePullPolicy"]);
    assert_eq!(image, (&json!("registry.example.com/t:v1"), &json!("Always")));
    assert_eq!(container["envFrom"], json!([{"secretRef": {"name": "more"}}]));
    let env = container["env"].as_array().unwrap();
    let value = |key: &str| env.iter().find(|e| e["name"] == key).unwrap()["value"].clone();
    assert_eq!(value("TOLLGATE__TELEMETRY__LEVEL"), "debug");
    assert_eq!(value("TOLLGATE__DRAIN__GRACE"), "60s");
    assert_eq!(value("TOLLGATE__LISTEN__PUBLISH"), "[::]:18080");
    assert_eq!(value("TOLLGATE__KEYS__SOURCE"), "oidc");
    assert_eq!(value("ALIBABA_CLOUD_ROLE_ARN"), "acs:ram::1:role/publisher");
    assert_eq!(value("ALIBABA_CLOUD_OIDC_PROVIDER_ARN"), "acs:ram::1:oidc-provider/ack-rrsa-c1");
    let has = |key: &str| env.iter().any(|e| e["name"] == key);
    assert!(has("NODE") && !has("TOLLGATE__KEYS__PATH"));
    // The token is where the variable says, from a volume that exists.
    let token = value("ALIBABA_CLOUD_OIDC_TOKEN_FILE");
    let volume = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "tollgate-oidc");
    let source = &volume.unwrap()["projected"]["sources"][0]["serviceAccountToken"];
    let wanted =
        json!({"path": "token", "audience": "sts.aliyuncs.com", "expirationSeconds": 3_600});
    assert_eq!(source, &wanted);
    let mounts = container["volumeMounts"].as_array().unwrap();
    let at = mounts.iter().find(|m| m["name"] == "tollgate-oidc").unwrap();
    assert_eq!(token, format!("{}/token", at["mountPath"].as_str().unwrap()));
    let ca = mounts.iter().find(|mount| mount["mountPath"] == "/ca").unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(volumes.iter().any(|volume| volume["name"] == ca["name"]), "a mount of no volume");
    assert_eq!(container["startupProbe"]["failureThreshold"], 999);
    assert_eq!(container["readinessProbe"]["periodSeconds"], 7);
    let live = &container["livenessProbe"];
    assert_eq!((&live["timeoutSeconds"], &live["periodSeconds"]), (&json!(8), &json!(10)));
    assert_eq!(container["securityContext"]["runAsUser"], 70_000);
    assert_eq!(container["securityContext"]["runAsNonRoot"], true);
    assert_eq!(container["ports"][0]["containerPort"], 18_080);
    assert_eq!(container["resources"]["limits"]["ephemeral-storage"], "2Gi");
    assert_eq!(pod["securityContext"]["fsGroup"], 70_000);
    assert_eq!(pod["terminationGracePeriodSeconds"], 70);
    assert_eq!(pod["serviceAccountName"], "demo-gate");
    assert_eq!(pod["automountServiceAccountToken"], false);
    for (key, holds) in [
        ("imagePullSecrets", json!([{"name": "pull"}])),
        ("nodeSelector", json!({"disk": "ssd"})),
        ("tolerations", json!([{"key": "k", "operator": "Exists"}])),
        ("priorityClassName", json!("high")),
    ] {
        assert_eq!(pod[key], holds);
        // The hooks must run, too.
        assert_eq!(template(named("Job", "demo-gate-check"))["spec"][key], holds);
        assert_eq!(named("Pod", "demo-gate-test")["spec"][key], holds);
    }
    assert_eq!(pod["topologySpreadConstraints"][0]["topologyKey"], "zone");
    assert!(pod["affinity"]["podAntiAffinity"].is_object());
    let metadata = &template(deployment)["metadata"];
    assert_eq!(metadata["labels"]["pod-identity.alibabacloud.com/injection"], "on");
    assert_eq!(metadata["labels"]["tollgate/account"], "shop");
    assert_eq!(metadata["annotations"]["note"], "here");
    assert!(metadata["annotations"]["tollgate/config-checksum"].is_string());

    let service = named("Service", "demo-gate");
    assert_eq!(service["spec"]["type"], "LoadBalancer");
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
    assert_eq!(service["spec"]["ports"][0]["port"], 8_000);
    assert_eq!(
        (&service["metadata"]["annotations"]["a"], &service["metadata"]["labels"]["c"]),
        (&json!("b"), &json!("d"))
    );
    let policy = &named("NetworkPolicy", "demo-gate")["spec"];
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], "publish");
    assert_eq!(policy["ingress"][1]["from"][0]["namespaceSelector"]["matchLabels"]["team"], "sre");
    assert_eq!(
        policy["egress"][1]["ports"],
        json!([{"port": 443}, {"port": 6_380}, {"port": 6_379}])
    );
    assert_eq!(policy["egress"][2]["to"][0]["ipBlock"]["cidr"], "10.0.0.0/8");
    let budget = &named("PodDisruptionBudget", "demo-gate")["spec"];
    assert_eq!((&budget["minAvailable"], &budget["maxUnavailable"]), (&json!("50%"), &Value::Null));
    let annotations = &named("ServiceAccount", "demo-gate")["metadata"]["annotations"];
    assert_eq!(annotations["pod-identity.alibabacloud.com/role-name"], "publisher");
    named("ConfigMap", "demo-own");
    named("Secret", "demo-gate-own");
    // Only theirs: the configuration is in a map of yours.
    assert!(manifests.iter().all(|m| m["data"]["tollgate.toml"].is_null()));
    for pod in [
        pod,
        &template(named("Job", "demo-gate-check"))["spec"],
        &named("Pod", "demo-gate-test")["spec"],
    ] {
        let volume =
            pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "tollgate-config");
        assert_eq!(volume.unwrap()["configMap"]["name"], "mine");
    }
}

#[test]
fn what_can_be_switched_off() {
    let kinds = |flags: &[&str]| -> BTreeSet<String> {
        helm(flags).iter().map(|m| m["kind"].as_str().unwrap().to_owned()).collect()
    };
    let all = kinds(&[]);
    for (flag, kind) in [
        ("networkPolicy.enabled=false", "NetworkPolicy"),
        ("networkPolicy=null", "NetworkPolicy"),
        ("podDisruptionBudget.enabled=false", "PodDisruptionBudget"),
        ("check=false", "Job"),
    ] {
        let mut left = kinds(&["--set", flag]);
        assert!(left.insert(kind.to_owned()), "{flag}");
        assert_eq!(left, all, "{flag}");
    }
}

/// What is null is none, or has its default: every section and every value, in each mode that has it.
#[test]
fn nothing_needs_to_be_said() {
    let values = super::readme::values(&super::read(&format!("{CHART}/values.yaml")));
    let paths = values.iter().map(|(path, ..)| path.as_str());
    let all: BTreeSet<_> = paths.flat_map(|path| [path, path.split('.').next().unwrap()]).collect();
    assert!(all.len() > 80, "{}", all.len());
    let keyring = "mode=keyring,keyring.roleArn=acs:ram::1:role/r,keyring.tlsSecret=tls,keyring.callers[0].name=shop,\
                   keyring.callers[0].subject=s";
    for (mode, needed) in [
        ("mode=gateway", &["mode", "config"][..]),
        ("mode=sidecar,workload=orders", &["mode", "config", "workload"]),
        (
            keyring,
            &[
                "mode",
                "config",
                "keyring",
                "keyring.callers",
                "keyring.issuers",
                "keyring.roleArn",
                "keyring.tlsSecret",
            ],
        ),
        ("mode=monitoring", &["mode"]),
    ] {
        let mut missed = Vec::new();
        // Values of a section are a gateway's and, of a keyring, its own.
        let of_it = |path: &&&str| {
            mode == "mode=gateway" || !path.contains('.') || path.starts_with("keyring.")
        };
        for path in all.iter().filter(of_it) {
            let null = format!("{path}=null");
            let output = tool("helm", &["template", "demo", CHART, "--set", mode, "--set", &null]);
            if !output.status.success() {
                missed.push(*path);
            }
        }
        assert_eq!(missed, BTreeSet::from_iter(needed).into_iter().copied().collect::<Vec<_>>());
    }
    // A peer that is left out is none that anything matches.
    let policy = |null: &str| {
        let manifests = helm(&["--set", null]);
        super::of(&manifests, "NetworkPolicy")["spec"].clone()
    };
    for null in ["networkPolicy.clients=null", "networkPolicy.scrapers=null"] {
        assert_eq!(policy(null), policy("account=default"), "{null}");
    }
}

/// Only who asks for it restarts pods on a change, and then each change does.
#[test]
fn restarts_on_a_change() {
    let sum = |set: &str, config: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let upstream = "upstream.endpoint = \"http://emulator:9000\"\nupstream.instance_id = \"i\"";
        std::fs::write(file.path(), format!("{upstream}\n{config}\n")).unwrap();
        let config = format!("config={}", file.path().display());
        let manifests = helm(&["--set", set, "--set-file", &config]);
        let metadata = &template(super::workload(&manifests))["metadata"];
        metadata["annotations"]["tollgate/config-checksum"].clone()
    };
    assert!(sum("restartOnChange=false", "").is_null());
    let on = |config: &str| sum("restartOnChange=true", config);
    assert_eq!(on(""), on(""));
    assert_ne!(on(""), on("[retry]\nbase = \"2s\""));
}

/// An app often owns 8080, and a demo has no app.
#[test]
fn ports_of_apps_are_left_alone() {
    let set = |set: &str| {
        let manifests = helm(&["--set", set]);
        let (container, _) = ours(super::workload(&manifests));
        super::variables(container)["TOLLGATE__LISTEN__PUBLISH"].to_owned()
    };
    assert_eq!(set("account=default"), "[::]:15080");
    assert_eq!(set("publish.port=18080"), "[::]:18080");
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let demo = demo.args(["demo", "--help"]).searched_now().unwrap();
    assert!(String::from_utf8_lossy(&demo.stdout).contains("[default: 127.0.0.1:8080]"));
}

#[test]
fn an_image_by_its_digest_and_a_port_of_the_nodes() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let set = format!(
        "image.repository=registry.example.com/t,image.tag=v1,image.digest={digest},service.type=NodePort,\
         service.nodePort=30080,resources.limits.memory=1.5Gi,serviceAccount.name=mine"
    );
    let manifests = helm(&["--set", &set]);
    let (container, pod) = ours(super::workload(&manifests));
    assert_eq!(container["image"], format!("registry.example.com/t@{digest}"), "not the tag's");
    assert_eq!(container["resources"]["limits"]["memory"], "1.5Gi");
    assert_eq!(pod["serviceAccountName"], "mine");
    assert!(manifests.iter().all(|manifest| manifest["kind"] != "ServiceAccount"));
    let is_it = |m: &&Value| m["kind"] == "Service" && m["spec"]["type"] == "NodePort";
    let service = manifests.iter().find(is_it).unwrap();
    assert_eq!(service["spec"]["ports"][0]["nodePort"], 30_080);
}
