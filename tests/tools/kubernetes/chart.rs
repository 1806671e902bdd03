//! The chart as a gateway.

use std::collections::BTreeSet;

use super::{
    CHART, fits, grace, helm, helm_with, of, ours, refuses, template, variables, workload,
};
use crate::support::manifests::{not_restricted, tool};
use serde_json::{Value, json};

const FLEET: &str = "config: |\n  [upstream]\n  endpoint = \"https://onsmqtt.cn-hangzhou.aliyuncs.com\"\n  \
                     instance_id = \"post-cn-0pp12gl0000\"\n  [fleet]\n  \
                     url = \"redis+sentinel://one:26380,two/main\" # shared\n";

/// All selectors select the workload's pods, and nothing else of the release.
fn selects(manifests: &[Value]) {
    let labels = template(workload(manifests))["metadata"]["labels"].as_object().unwrap();
    let others = manifests.iter().filter(|m| m["kind"] == "Job" || m["kind"] == "Pod");
    let others = others.map(|m| if m["kind"] == "Job" { template(m) } else { m });
    let others: Vec<_> = others.map(|pod| pod["metadata"]["labels"].as_object().unwrap()).collect();
    assert_eq!(others.len(), 2, "the check and the test");
    let mut found = 0;
    for manifest in manifests {
        let at = match manifest["kind"].as_str().unwrap() {
            "Deployment" | "StatefulSet" | "PodDisruptionBudget" => "/spec/selector/matchLabels",
            "Service" => "/spec/selector",
            "NetworkPolicy" => "/spec/podSelector/matchLabels",
            _ => continue,
        };
        let selector = manifest.pointer(at).unwrap().as_object().unwrap();
        let holds = |labels: &serde_json::Map<String, Value>| {
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        assert!(holds(labels), "{manifest}");
        assert!(!others.iter().any(|labels| holds(labels)), "{manifest} selects a hook's pod");
        found += 1;
    }
    assert_eq!(found, 5);
}

#[test]
fn a_gateway() {
    let manifests = helm(&[]);
    let deployment = of(&manifests, "Deployment");
    fits(&manifests, deployment);
    selects(&manifests);
    // Those of 0.1: a Deployment's cannot change, and the Service selects old pods until new ones are ready.
    let selector =
        json!({"app.kubernetes.io/name": "tollgate", "app.kubernetes.io/instance": "demo"});
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], selector);
    for service in manifests.iter().filter(|m| m["kind"] == "Service") {
        assert_eq!(service["spec"]["selector"], selector);
    }
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let (container, pod) = ours(deployment);
    // Nodes still route to a pod that ends.
    assert_eq!(variables(container)["TOLLGATE__DRAIN__ACCEPT_FOR"], "5s");
    grace(pod, 0);
    let service = manifests
        .iter()
        .find(|m| m["metadata"]["name"] == "demo-tollgate" && m["kind"] == "Service");
    let port = &service.unwrap()["spec"]["ports"][0];
    assert_eq!((&port["port"], &port["targetPort"]), (&json!(80), &json!("publish")));
    // All are labelled, in the namespace of the release.
    for manifest in &manifests {
        let metadata = &manifest["metadata"];
        assert_eq!(metadata["namespace"], "shop", "{manifest}");
        assert_eq!(metadata["labels"]["helm.sh/chart"], "tollgate-0.2.0");
        for label in ["name", "instance", "version", "managed-by", "part-of", "component"] {
            assert!(metadata["labels"][format!("app.kubernetes.io/{label}")].is_string());
        }
    }
}

#[test]
fn pods_without_a_fleet_share_the_ceilings() {
    let parts = |manifests: &[Value]| {
        let (container, _) = ours(workload(manifests));
        let set = variables(container);
        (
            set.get("TOLLGATE__CEILINGS__ACCOUNT").map(ToString::to_string),
            set.get("TOLLGATE__CEILINGS__EGRESS_IP").map(ToString::to_string),
        )
    };
    let two = |account: &str, egress: &str| (Some(account.to_owned()), Some(egress.to_owned()));
    // A pod that ends still sends, and its successor does already, unless it ends first.
    assert_eq!(parts(&helm(&[])), two("500", "150"));
    assert_eq!(parts(&helm(&["--set", "replicas=3"])), two("166", "50"));
    assert_eq!(parts(&helm(&["--set", "replicas=3,spool.volume=claims"])), two("333", "100"));
    let one = helm(&["--set", "spool.volume=claim,spool.claim=spool"]);
    assert_eq!(parts(&one), (None, None));
    assert_eq!(parts(&helm_with(&format!("replicas: 3\n{FLEET}"))), (None, None));
    // Its URL may be a secret's.
    let secret = "replicas: 3\nextraEnv:\n  - name: TOLLGATE__FLEET__URL\n    valueFrom: { secretKeyRef: { name: redis, key: url } }\n";
    let manifests = helm_with(secret);
    let env = ours(workload(&manifests)).0["env"].as_array().unwrap().clone();
    let name = |set: &Value| set["name"].as_str().unwrap().to_owned();
    assert!(env.iter().map(name).all(|name| !name.contains("CEILINGS")), "{env:?}");
    let policy = &of(&manifests, "NetworkPolicy")["spec"]["egress"][1]["ports"];
    assert_eq!(policy, &json!([{"port": 443}, {"port": 80}, {"port": 6_379}]));
    helm_with(&format!("{secret}  - {{ name: TOLLGATE__DRAIN__HANDOFF, value: \"true\" }}\n"));
    // What the configuration says holds.
    let said = "config: |\n  [upstream]\n  endpoint = \"http://emulator:9000\"\n  instance_id = \"post-cn-0pp12gl0000\"\n  \
                [ceilings]\n  account = 100\n";
    assert_eq!(parts(&helm_with(said)), (None, None));
    refuses(&["--set", "replicas=151"], "302 pods that send at once cannot share 300 calls");
    // The chart does not see into a map of yours: you say it, or it is one pod.
    let mine = "existingConfigMap=mine,replicas=3";
    refuses(&["--set", mine], "up to 6 pods send at once: set TOLLGATE__FLEET__URL");
    refuses(&["--set", "existingConfigMap=mine"], "up to 2 pods send at once");
    let account = format!("{mine},extraEnv[0].name=TOLLGATE__CEILINGS__ACCOUNT");
    refuses(&["--set", &account, "--set-string", "extraEnv[0].value=100"], "up to 6 pods");
    let both = "existingConfigMap: mine\nreplicas: 3\nextraEnv:\n  - { name: TOLLGATE__CEILINGS__ACCOUNT, value: \"100\" }\n  \
                - { name: TOLLGATE__CEILINGS__EGRESS_IP, value: \"30\" }\n";
    assert_eq!(parts(&helm_with(both)), two("100", "30"));
    let one = helm(&["--set", "existingConfigMap=mine,spool.volume=claim,spool.claim=spool"]);
    assert_eq!(parts(&one), (None, None));
}

#[test]
fn a_gateway_whose_spool_outlives_it() {
    let manifests = helm(&["--set", "spool.volume=claim,spool.claim=spool"]);
    fits(&manifests, workload(&manifests));
    // The next process waits for the spool until this one has ended: with a surge for ever.
    assert_eq!(of(&manifests, "Deployment")["spec"]["strategy"]["type"], "Recreate");
    let claim = &ours(workload(&manifests)).1["volumes"];
    let claim = claim.as_array().unwrap().iter().find(|v| v["name"] == "tollgate-spool").unwrap();
    assert_eq!(claim["persistentVolumeClaim"]["claimName"], "spool");

    let manifests = helm(&["--set", "spool.volume=claims,replicas=3,spool.storageClass=fast"]);
    let set = of(&manifests, "StatefulSet");
    fits(&manifests, set);
    selects(&manifests);
    assert_eq!(set["spec"]["replicas"], 3);
    let claim = &set["spec"]["volumeClaimTemplates"][0];
    assert_eq!(claim["spec"]["storageClassName"], "fast");
    assert_eq!(claim["spec"]["accessModes"], json!(["ReadWriteOncePod"]));
    let kept = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
    assert_eq!(set["spec"]["persistentVolumeClaimRetentionPolicy"], kept);
    let names = manifests.iter().filter(|m| m["kind"] == "Service").map(|m| &m["metadata"]["name"]);
    assert!(names.collect::<Vec<_>>().contains(&&set["spec"]["serviceName"]));
}

#[test]
fn one_value_is_the_size_of_the_volume_and_of_the_spool() {
    for (size, max) in [
        ("160Mi", "12MiB"),
        ("1Gi", "422MiB"),
        ("1.5Gi", "665MiB"),
        ("1G", "388MiB"),
        ("500M", "162MiB"),
        ("1Ti", "498009MiB"),
        ("1e9", "388MiB"),
        ("1073741824", "422MiB"),
        ("4Ti", "1048576MiB"),
    ] {
        let manifests = helm(&["--set", &format!("spool.size={size}")]);
        let (container, pod) = ours(workload(&manifests));
        assert_eq!(variables(container)["TOLLGATE__SPOOL__MAX_BYTES"], max, "{size}");
        let volumes = pod["volumes"].as_array().unwrap().iter();
        assert_eq!(volumes.filter(|v| v["emptyDir"]["sizeLimit"] == size).count(), 1, "{size}");
        assert_eq!(container["resources"]["requests"]["ephemeral-storage"], size);
        super::check(&manifests, container);
    }
    // In Redis, the bound is that of all pods together, and no volume's.
    let redis =
        helm_with(&format!("{FLEET}  [spool]\n  store = \"redis\"\n  max_bytes = \"2GiB\"\n"));
    let (container, _) = ours(workload(&redis));
    assert!(!variables(container).contains_key("TOLLGATE__SPOOL__MAX_BYTES"));
}

#[test]
fn egress_follows_from_the_configuration() {
    let ports = |config: &str| {
        let manifests = helm_with(&format!("config: |\n  {}\n", config.replace('\n', "\n  ")));
        let policy = of(&manifests, "NetworkPolicy");
        let ports = policy["spec"]["egress"][1]["ports"].as_array().unwrap().clone();
        ports.iter().map(|port| port["port"].as_u64().unwrap()).collect::<BTreeSet<_>>()
    };
    let upstream = "upstream.endpoint = \"https://onsmqtt.cn-hangzhou.aliyuncs.com\"\nupstream.instance_id = 'post-cn-0pp12gl0000'\n";
    // "auto" may ask the metadata service.
    assert_eq!(ports(upstream), [80, 443].into());
    let upstream = format!("{upstream}keys.source = 'env'\n");
    let with = |more: &str| ports(&format!("{upstream}{more}"));
    assert_eq!(with(""), [443].into());
    assert_eq!(with("[fleet]\nurl = \"redis://redis.shop.svc\""), [443, 6_379].into());
    assert_eq!(
        with("[fleet]\nurl = 'rediss://u:p@one:7000,two:7001' # here"),
        [443, 7_000, 7_001].into()
    );
    assert_eq!(
        with("fleet = { url = \"redis+sentinel://one:26380,two/main\" }"),
        [443, 6_379, 26_379, 26_380].into()
    );
    assert_eq!(with("[fleet]\n# url = \"redis://redis:7777\""), [443].into());
    assert_eq!(with("upstream.proxy = \"http://u:p@proxy:3128\""), [443, 3_128].into());
    assert_eq!(
        ports("[upstream]\nendpoint = \"http://emulator:9000\"\ninstance_id = \"i\""),
        [80, 443, 9_000].into()
    );
    let from_a_variable = "extraEnv: [{ name: TOLLGATE__FLEET__URL, value: \"redis://one:7777\" }]";
    let manifests = helm_with(from_a_variable);
    let policy = &of(&manifests, "NetworkPolicy")["spec"]["egress"][1]["ports"];
    assert_eq!(policy, &json!([{"port": 443}, {"port": 80}, {"port": 7_777}]));
}

/// With what the configuration says of a stop.
#[test]
fn the_pod_gets_the_time_that_a_stop_takes() {
    let time = |values: &str| {
        let manifests = helm_with(values);
        let (_, pod) = ours(workload(&manifests));
        pod["terminationGracePeriodSeconds"].as_u64().unwrap()
    };
    assert_eq!(time("drainSeconds: 60"), 5 + 60 + 5);
    // The last call of a short drain begins at half of it.
    assert_eq!(time("drainSeconds: 5"), 5 + 5 + 3 + 5);
    assert_eq!(time(&format!("{FLEET}  [drain]\n  handoff = true\n")), 5 + 20 + 5 + 10);
    let call = |written: &str| {
        let endpoint = "upstream.endpoint = \"http://emulator:9000\"";
        format!("config: |\n  upstream.call_timeout = \"{written}\"\n  {endpoint}\n")
    };
    for (written, seconds) in
        [("15s", 15), ("14500ms", 15), ("1m", 60), ("1m 30s", 90), ("1m30s", 90), ("1h", 3_600)]
    {
        assert_eq!(time(&call(written)), 5 + 20 + seconds + 5, "{written}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), call("15 seconds")).unwrap();
    let values = file.path().to_str().unwrap();
    refuses(&["--values", values], "upstream.call_timeout is \"15 seconds\"");
}

/// `keys.source` is one that this version knows, and finds what the chart gives it.
#[test]
fn a_role_instead_of_a_secret() {
    let role = "rrsa.roleArn=acs:ram::1:role/r,rrsa.oidcProviderArn=acs:ram::1:oidc-provider/p";
    let manifests = helm(&["--set", role]);
    fits(&manifests, workload(&manifests));
    let checked = super::check(&manifests, ours(workload(&manifests)).0);
    for known in ["TOLLGATE__KEYS__SOURCE", "ALIBABA_CLOUD_ROLE_ARN", "rrsa-tokens/token"] {
        assert!(checked.contains(known), "{known}: {checked}");
    }
}

/// Alerts add up the ceilings by account and region.
#[test]
fn the_region() {
    let region = |values: &str| {
        let manifests = helm_with(values);
        template(workload(&manifests))["metadata"]["labels"]["tollgate/region"].clone()
    };
    let of = |lines: &str| format!("config: |\n  [upstream]\n  instance_id = \"i\"\n  {lines}\n");
    assert_eq!(region(""), "cn-hangzhou");
    let vpc = of("endpoint = \"https://onsmqtt-vpc.ap-southeast-1.aliyuncs.com\"");
    assert_eq!(region(&vpc), "ap-southeast-1");
    assert_eq!(region(&format!("region: eu-central-1\n{vpc}")), "eu-central-1");
    let elsewhere = "endpoint = \"https://proxy.example\"";
    assert_eq!(region(&of(elsewhere)), Value::Null);
    let named = format!("{elsewhere}\n  [fleet]\n  region = \"cn-beijing\"");
    assert_eq!(region(&of(&named)), "cn-beijing");
}

#[test]
fn names() {
    let name = |release: &str, set: &str| {
        let manifests = super::rendered("helm", &["template", release, CHART, "--set", set]);
        let deployment =
            of(&manifests, "Deployment")["metadata"]["name"].as_str().unwrap().to_owned();
        for manifest in &manifests {
            let name = manifest["metadata"]["name"].as_str().unwrap();
            assert!(
                name.starts_with(&deployment) && name.len() <= 63 && !name.contains('.'),
                "{name}"
            );
        }
        deployment
    };
    assert_eq!(name("demo", "global.x=1"), "demo-tollgate");
    assert_eq!(name("tollgate-eu", "global.x=1"), "tollgate-eu");
    assert_eq!(name("demo", "nameOverride=gate"), "demo-gate");
    assert_eq!(name("demo", "fullnameOverride=gate"), "gate");
    assert_eq!(name("shop.eu", "global.x=1"), "shop-eu-tollgate");
    assert_eq!(name("2026", "global.x=1"), "t-2026-tollgate");
    assert_eq!(name("2026", "nameOverride=on-call"), "t-2026-on-call");
    assert_eq!(name("2026", "fullnameOverride=null"), "t-2026-tollgate");
    // Longer names than 48 characters stay different.
    let (one, two) =
        (name(&"a".repeat(53), "global.x=1"), name(&format!("{}b", "a".repeat(52)), "global.x=1"));
    assert!(one != two && one.len() <= 48 && two.len() <= 48, "{one} {two}");
}

#[test]
fn hooks() {
    let manifests = helm(&[]);
    let job = of(&manifests, "Job");
    let annotations = &job["metadata"]["annotations"];
    assert!(annotations["helm.sh/hook"].as_str().unwrap().contains("pre-upgrade"));
    let check = &template(job)["spec"]["containers"][0];
    assert_eq!(check["args"], json!(["check", "--config=/etc/tollgate/tollgate.toml"]));
    assert_eq!(template(job)["spec"]["restartPolicy"], "Never");
    let (container, _) = ours(workload(&manifests));
    assert_eq!(check["env"], container["env"], "it checks what the pods have");
    // Both maps have the new configuration; the hook's is there before the other one changes.
    let maps: Vec<_> = manifests.iter().filter(|m| m["kind"] == "ConfigMap").collect();
    assert_eq!(maps.len(), 2);
    assert_eq!(maps[0]["data"], maps[1]["data"]);
    let mounted = &template(job)["spec"]["volumes"][0]["configMap"]["name"];
    let hook = maps.iter().find(|map| &map["metadata"]["name"] == mounted).unwrap();
    let weight = |m: &Value| {
        m["metadata"]["annotations"]["helm.sh/hook-weight"]
            .as_str()
            .unwrap()
            .parse::<i32>()
            .unwrap()
    };
    assert!(weight(hook) < weight(job));
    let test = &of(&manifests, "Pod");
    assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test");
    assert_eq!(not_restricted(&test["spec"]), Vec::<String>::new());
    assert_eq!(not_restricted(&template(job)["spec"]), Vec::<String>::new());
    let at = test["spec"]["containers"][0]["args"][3].as_str().unwrap();
    let service = manifests.iter().find(|m| {
        m["kind"] == "Service"
            && at.starts_with(&format!("{}:", m["metadata"]["name"].as_str().unwrap()))
    });
    assert_eq!(at, format!("{}:9464", service.unwrap()["metadata"]["name"].as_str().unwrap()));
}

#[test]
fn it_renders_for_old_clusters() {
    for (version, renders) in
        [("1.28.9", false), ("1.29.0", true), ("1.29.4-aliyun.1", true), ("1.37.0", true)]
    {
        for mode in [&["--set", "mode=sidecar,workload=orders"][..], &[]] {
            let args = [&["template", "demo", CHART, "--kube-version", version], mode].concat();
            assert_eq!(tool("helm", &args).status.success(), renders, "{version} {mode:?}");
        }
    }
    refuses(&["--kube-version", "1.28.0"], "1.29");
}
