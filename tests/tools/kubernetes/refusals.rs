//! The chart is strict: an unknown key, a wrong quantity and what cannot work do not render.

use super::{CHART, refuses};
use crate::support::manifests::tool;

#[test]
fn it_is_clean() {
    let linted = tool("helm", &["lint", "--strict", CHART]);
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
}

#[test]
fn unknown_keys_and_wrong_values() {
    for (wrong, words) in [
        ("mode=both", "mode"),
        ("conifg=x", "conifg"),
        ("image.registry=x", "registry"),
        ("spool.sizes=1Gi", "sizes"),
        ("monitoring.podMonitor=true", "podMonitor"),
        ("service.ports=80", "ports"),
        ("service.spec.selector=x", "selector"),
        ("probes.startup.failures=1", "failures"),
        ("resources.limits.cpus=1", "cpus"),
        ("rrsa.role=x", "role"),
        ("replicas=0", "replicas"),
        ("spool.size=1", "160Mi"),
        ("spool.size=16Mi", "160Mi"),
        ("spool.size=1GB", "size"),
        ("spool.size=-1Gi", "size"),
        ("spool.size=big", "size"),
        ("resources.limits.memory=128MB", "memory"),
        ("resources.requests.cpu=50k", "cpu"),
        ("drainSeconds=20s", "drainSeconds"),
        ("publish.port=80", "port"),
        ("publish.port=9464", "port"),
        ("image.digest=sha256:1", "digest"),
        ("fullnameOverride=-x", "fullnameOverride"),
        ("account=a b", "account"),
        ("podLabels.tollgate/name=x", "tollgate/name"),
        ("monitoring.interval=often", "interval"),
    ] {
        refuses(&["--set", wrong], words);
    }
}

#[test]
fn what_cannot_work() {
    for (wrong, words) in [
        // Two processes cannot hold one spool.
        ("spool.volume=claim,spool.claim=spool,replicas=2", "replicas"),
        ("spool.volume=claim,spool.claim=spool,autoscaling.enabled=true", "volume"),
        ("spool.volume=claim", "claim"),
        ("spool.claim=spool", "claim"),
        ("spool.storageClass=fast", "storageClass"),
        // It would leave claims with messages.
        ("spool.volume=claims,autoscaling.enabled=true", "volume"),
        // Their number changes, and they share nothing.
        ("autoscaling.enabled=true", "fleet.url"),
        // Pods that let no more through.
        (
            "autoscaling.enabled=true,extraEnv[0].name=TOLLGATE__FLEET__URL,extraEnv[0].value=redis://redis",
            "autoscaling.metrics is empty",
        ),
        (
            "autoscaling.enabled=true,autoscaling.metrics[0].type=Resource,autoscaling.minReplicas=5,extraEnv[0].name=TOLLGATE__FLEET__URL,extraEnv[0].value=redis://redis",
            "minReplicas",
        ),
        ("mode=sidecar", "workload"),
        ("workload=orders", "workload"),
        ("mode=sidecar,workload=orders,autoscaling.enabled=true", "enabled"),
        ("mode=sidecar,workload=orders,monitoring.monitor=ServiceMonitor", "monitor"),
        ("publish.listen=unix:/run/tollgate/publish.sock", "listen"),
        // Rules are a cluster's.
        ("monitoring.alerts.TollgateDown.enabled=false", "alerts"),
        ("mode=monitoring,monitoring.monitor=PodMonitor", "monitor"),
        ("mode=monitoring,monitoring.alerts.TollgateUp.enabled=false", "there is no such alert"),
        ("mode=monitoring,monitoring.alerts.TollgateAbsent.threshold=2", "no threshold"),
        ("podDisruptionBudget.minAvailable=1", "podDisruptionBudget"),
        ("rrsa.roleArn=acs:ram::1:role/x,secret=tollgate", "secret"),
        ("rrsa.roleArn=acs:ram::1:role/x", "oidcProviderArn"),
        ("config=null", "config"),
    ] {
        refuses(&["--set", wrong], words);
    }
}

/// What a value decides is not overridden without a word.
#[test]
fn the_file_and_the_values_agree() {
    let upstream = "upstream.endpoint = \"https://onsmqtt.cn-hangzhou.aliyuncs.com\"\nupstream.instance_id = \"i\"\n";
    for (config, words) in [
        ("[listen]\npublish = \"unix:/run/x\"", "sets listen.publish"),
        ("[ listen ] # here\n\"publish\" = \"unix:/run/x\"", "set publish.port or publish.listen"),
        ("listen.telemetry = \"0.0.0.0:9000\"", "sets listen.telemetry"),
        ("listen = { telemetry = \"0.0.0.0:9000\" }", "sets listen.telemetry"),
        ("[spool]\nmax_bytes = \"1GiB\"", "set spool.size"),
        ("[spool]\npath = \"/data\"", "sets spool.path"),
        ("[drain]\ngrace = \"60s\"", "set drainSeconds"),
        ("[drain]\nhandoff = true", "needs fleet.url"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{upstream}{config}\n")).unwrap();
        refuses(&["--set-file", &format!("config={}", file.path().display())], words);
    }
    // The source of the key is the file's, unless a value says it.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{upstream}[keys]\nsource = \"env\"\n")).unwrap();
    let config = format!("config={}", file.path().display());
    let secret = &["--set", "secret=tollgate", "--set-file", &config];
    refuses(secret, "set secret and rrsa.roleArn");
    let manifests = super::helm(&["--set-file", &config]);
    let set = super::variables(super::ours(super::workload(&manifests)).0);
    assert!(!set.contains_key("TOLLGATE__KEYS__SOURCE"), "{set:?}");
    for variable in ["TOLLGATE__DRAIN__GRACE", "TOLLGATE__LISTEN__PUBLISH"] {
        let set = format!("extraEnv[0].name={variable},extraEnv[0].value=1s");
        refuses(&["--set", &set], "which the values of the chart decide");
    }
    // Keys that it does not set are the file's.
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = "[listen]\nhosts = [\"orders\"]\n[publish]\nwait = \"2s\"\n[[upstream.instances]]\ninstance_id = \"j\"\ntopics = [\"A/*\"]\n";
    std::fs::write(file.path(), format!("{upstream}{config}")).unwrap();
    let rendered = tool(
        "helm",
        &["template", "demo", CHART, "--set-file", &format!("config={}", file.path().display())],
    );
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
}
