//! A newcomer's path, timed: what docs/kubernetes.md says to write, rendered, run as a kubelet runs it, and one message
//! published as the document says. Only the URLs of what a cluster has are this machine's.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::drills::Provider;
use super::node::{Container, Node, Pod, bind, no_capabilities};
use super::say;
use crate::kubernetes::{example_chart, ours, template};
use crate::support::http::{BOUND, get};
use crate::support::manifests::{of, root, tool};
use crate::support::until;

/// What of a container is followed here. A field that is not fails the test, so that none is left out unseen.
const FOLLOWED: [&str; 12] = [
    "args",
    "env",
    "image",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "restartPolicy",
    "securityContext",
    "startupProbe",
    "volumeMounts",
];

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

/// A volume of Kubernetes with these files, as the kubelet lays it out.
fn files(node: &Node, files: &[(&str, &str)]) -> PathBuf {
    let volume = node.volume("files");
    let data = volume.join("..2026");
    std::fs::create_dir(&data).unwrap();
    symlink("..2026", volume.join("..data")).unwrap();
    for (name, text) in files {
        std::fs::write(data.join(name), text).unwrap();
        symlink(format!("..data/{name}"), volume.join(name)).unwrap();
    }
    volume
}

fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap();
    let (number, unit) = text.split_at(text.len() - 2);
    number.parse::<u64>().unwrap() * if unit == "Gi" { 1 << 30 } else { 1 << 20 }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// What the container mounts at a path, as a flag of `ctr`.
fn mounted(
    node: &Node,
    manifests: &[Value],
    urls: &[(&str, &str)],
    volume: &Value,
    mount: &Value,
) -> String {
    let to = text(&mount["mountPath"]);
    let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
    if let Some(name) = volume["configMap"]["name"].as_str() {
        let is_it = |m: &&Value| m["kind"] == "ConfigMap" && m["metadata"]["name"] == name;
        let map = manifests.iter().find(is_it).unwrap_or_else(|| panic!("no ConfigMap {name}"));
        let mut data = Vec::new();
        for (file, content) in map["data"].as_object().unwrap() {
            let ours = |all: String, (theirs, ours): &(&str, &str)| all.replace(theirs, ours);
            data.push((&**file, urls.iter().fold(text(content).to_owned(), ours)));
        }
        let data: Vec<_> = data.iter().map(|(file, content)| (*file, &**content)).collect();
        return bind(&files(node, &data), to, mode);
    }
    if let Some(name) = volume["secret"]["secretName"].as_str() {
        // The one that the document's command makes.
        assert_eq!(name, "tollgate");
        let key = [("access_key_id", "testid"), ("access_key_secret", "testsecret")];
        return bind(&files(node, &key), to, mode);
    }
    let empty = &volume["emptyDir"];
    assert!(empty.is_object(), "an unknown volume: {volume}");
    if empty["medium"] == "Memory" {
        let size = bytes(&empty["sizeLimit"]);
        return format!("type=tmpfs,src=tmpfs,dst={to},options={mode}:size={size}:mode=0777");
    }
    let folder = node.volume("emptydir");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(&folder, Some(0), Some(0)).unwrap();
    bind(&folder, to, mode)
}

/// What ACK's pod identity webhook adds to a pod that asks for it, and whose service account names a role: variables, and
/// a token of the pod.
fn identity(node: &Node, manifests: &[Value], workload: &Value, sts: &str) -> Vec<String> {
    let template = template(workload);
    if template["metadata"]["labels"]["pod-identity.alibabacloud.com/injection"] != "on" {
        return Vec::new();
    }
    let name = &template["spec"]["serviceAccountName"];
    let is_it = |m: &&Value| m["kind"] == "ServiceAccount" && &m["metadata"]["name"] == name;
    let account = manifests.iter().find(is_it).unwrap_or_else(|| panic!("no account {name}"));
    let role = text(&account["metadata"]["annotations"]["pod-identity.alibabacloud.com/role-name"]);
    let until = jiff::Timestamp::now().as_second() + 3_600;
    let claims = format!(r#"{{"iss":"i","aud":["sts.aliyuncs.com"],"exp":{until}}}"#);
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    let at = "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens";
    let variables = [
        format!("ALIBABA_CLOUD_ROLE_ARN=acs:ram::1000000000000001:role/{role}"),
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN=acs:ram::1000000000000001:oidc-provider/ack".to_owned(),
        format!("ALIBABA_CLOUD_OIDC_TOKEN_FILE={at}/token"),
        format!("TOLLGATE__KEYS__STS_ENDPOINT={sts}"),
    ];
    let mount = bind(&files(node, &[("token", &token)]), at, "ro");
    let variables = variables.into_iter().flat_map(|set| ["--env".to_owned(), set]);
    variables.chain(["--mount".to_owned(), mount]).collect()
}

/// Starts the container of the template, with all that the template says of it.
fn start<'a>(
    node: &Node,
    pod: &'a Pod<'_>,
    manifests: &[Value],
    urls: &[(&str, &str)],
    workload: &Value,
) -> Container<'a> {
    let (container, spec) = ours(workload);
    for field in container.as_object().unwrap().keys() {
        assert!(FOLLOWED.contains(&&**field), "the test does not follow {field}");
    }
    assert!(text(&container["image"]).ends_with("tollgate:0.1.0"), "{}", container["image"]);
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    for set in container["env"].as_array().unwrap() {
        flag("--env", format!("{}={}", text(&set["name"]), text(&set["value"])));
    }
    for mount in container["volumeMounts"].as_array().unwrap() {
        let mut volumes = spec["volumes"].as_array().unwrap().iter();
        let volume = volumes.find(|volume| volume["name"] == mount["name"]);
        let volume = volume.unwrap_or_else(|| panic!("no volume for {mount}"));
        flag("--mount", mounted(node, manifests, urls, volume, mount));
    }
    flags.extend(identity(node, manifests, workload, urls[0].1));
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    let resources = &container["resources"];
    assert!(resources["limits"]["cpu"].is_null(), "the test does not follow a limit of CPU");
    flag("--memory-limit", bytes(&resources["limits"]["memory"]).to_string());
    let cpu = text(&resources["requests"]["cpu"]).trim_end_matches('m').parse::<u64>().unwrap();
    flag("--cpu-shares", (cpu * 1024 / 1000).to_string());
    let security = &container["securityContext"];
    if security["readOnlyRootFilesystem"] == true {
        flags.push("--read-only".to_owned());
    }
    if security["seccompProfile"]["type"] == "RuntimeDefault" {
        flags.push("--seccomp".to_owned());
    }
    if security["allowPrivilegeEscalation"] != false {
        flags.push("--allow-new-privs".to_owned());
    }
    if security["capabilities"]["drop"][0] == "ALL" {
        flags.extend(no_capabilities());
    }
    let args: Vec<_> = container["args"].as_array().unwrap().iter().map(text).collect();
    pod.start(&flags, &args)
}

/// The number of a port that has a name.
fn port(container: &Value, name: &Value) -> u64 {
    let mut ports = container["ports"].as_array().unwrap().iter();
    let port = ports.find(|port| &port["name"] == name);
    port.unwrap_or_else(|| panic!("no port {name}"))["containerPort"].as_u64().unwrap()
}

/// Asks as the kubelet does, until the probe passes.
async fn passes(pod: &Pod<'_>, running: &mut Container<'_>, container: &Value, probe: &str) {
    let asks = &container[probe];
    let at = pod.at(port(container, &asks["httpGet"]["port"]));
    let mut ticks = interval(Duration::from_secs(asks["periodSeconds"].as_u64().unwrap()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let passed = timeout(BOUND, async {
        loop {
            ticks.tick().await;
            assert!(!running.is_over(), "it has ended: {}", running.log());
            if tokio::net::TcpStream::connect(&at).await.is_ok()
                && get(&at, text(&asks["httpGet"]["path"])).await.status == 200
            {
                break;
            }
        }
    });
    assert!(passed.await.is_ok(), "{probe} never passes: {}", running.log());
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

/// From the rendered manifests to the first message. Returns a row of the table.
async fn walk(node: &Node, path: &Path) -> String {
    let provider = Provider::start("[]").await;
    let urls = [
        ("https://onsmqtt-vpc.cn-hangzhou.aliyuncs.com", &*provider.url),
        ("https://onsmqtt.cn-hangzhou.aliyuncs.com", &*provider.url),
    ];
    let (manifests, took) = &path.rendered;
    let workload = of(manifests, "Deployment");
    let (container, _) = ours(workload);
    let pod = node.pod();
    let begun = Instant::now();
    let mut running = start(node, &pod, manifests, &urls, workload);
    passes(&pod, &mut running, container, "startupProbe").await;
    passes(&pod, &mut running, container, "readinessProbe").await;
    let ready = begun.elapsed();
    let user = &container["securityContext"]["runAsUser"];
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    assert!(status.contains(&format!("Uid:\t{user}\t")), "{status}");
    publish(&pod, path, container, workload, "first");
    until("it is delivered", async || provider.has().await.contains("first")).await;
    let first = *took + begun.elapsed();
    assert_eq!(running.stop(BOUND).await.expect("it ends in its grace").code, 0);
    let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
    let [took, ready, first] = [took, &ready, &first].map(seconds);
    format!("| {} | {} | {took} | {ready} | {first} |", path.what, path.lines)
}

pub(super) async fn paths(node: &Node) {
    let [kustomize, chart, gateway] = [kustomize(), chart(), gateway()];
    assert_eq!((kustomize.lines, chart.lines), (3, 3), "docs/kubernetes.md says three");
    say("\n| path | lines | rendered in | ready in | first delivered after |");
    say("| --- | --- | --- | --- | --- |");
    for path in [kustomize, chart, gateway] {
        say(&walk(node, &path).await);
    }
}
