//! What a kubelet does with a rendered pod: its volumes, its variables, its security context, its probes. Only the URLs of
//! what a cluster has are this machine's.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::drills::Provider;
use super::node::{Container, Node, Pod, bind, no_capabilities};
use crate::kubernetes::{ours, template};
use crate::support::http::{BOUND, get};
use crate::support::manifests::containers;
use crate::support::secrets::Searched as _;

/// The provider's key, as a Secret has it.
pub(super) const KEY: &[(&str, &str)] =
    &[("access_key_id", "testid"), ("access_key_secret", "testsecret")];

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

/// The provider's endpoints in examples and documents, and that of its tokens.
const ENDPOINTS: [&str; 3] = [
    "https://onsmqtt-vpc.cn-hangzhou.aliyuncs.com",
    "https://onsmqtt.cn-hangzhou.aliyuncs.com",
    "https://sts.cn-hangzhou.aliyuncs.com",
];

/// A volume's files, by their names.
type Files = Vec<(String, String)>;

/// What a cluster has besides the manifests.
pub(super) struct Cluster<'a> {
    node: &'a Node,
    /// Of the provider.
    url: String,
    secrets: Vec<(String, Files)>,
    /// Of its DNS, and their addresses.
    names: Files,
    /// What a pod gets to speak with the API server: a token, and the server's authority.
    account: Files,
}

fn owned(files: &[(&str, &str)]) -> Files {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

impl<'a> Cluster<'a> {
    pub(super) fn of(node: &'a Node, provider: &Provider) -> Self {
        let url = provider.url.clone();
        Self { node, url, secrets: Vec::new(), names: Vec::new(), account: Vec::new() }
    }

    pub(super) fn with_secret(mut self, name: &str, files: &[(&str, &str)]) -> Self {
        self.secrets.push((name.to_owned(), owned(files)));
        self
    }

    pub(super) fn with_account(mut self, token: &str, authority: &str) -> Self {
        self.account = owned(&[("token", token), ("ca.crt", authority)]);
        self
    }

    /// From now on containers find this name.
    pub(super) fn resolves(&mut self, name: &str, address: &str) {
        self.names.push((name.to_owned(), address.to_owned()));
    }

    /// A volume of Kubernetes with these files, as the kubelet lays it out.
    fn files(&self, files: &[(String, String)]) -> PathBuf {
        let volume = self.node.volume("files");
        let data = volume.join("..2026");
        std::fs::create_dir(&data).unwrap();
        symlink("..2026", volume.join("..data")).unwrap();
        for (name, text) in files {
            std::fs::write(data.join(name), text).unwrap();
            symlink(format!("..data/{name}"), volume.join(name)).unwrap();
        }
        volume
    }

    /// What the container mounts at a path, as a flag of `ctr`.
    fn mounted(&self, manifests: &[Value], volume: &Value, mount: &Value) -> String {
        let to = text(&mount["mountPath"]);
        let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
        if let Some(name) = volume["configMap"]["name"].as_str() {
            let is_it = |m: &&Value| m["kind"] == "ConfigMap" && m["metadata"]["name"] == name;
            let map = manifests.iter().find(is_it).unwrap_or_else(|| panic!("no ConfigMap {name}"));
            let mut data = Vec::new();
            for (file, content) in map["data"].as_object().unwrap() {
                let ours = |all: String, theirs: &&str| all.replace(theirs, &self.url);
                data.push((file.clone(), ENDPOINTS.iter().fold(text(content).to_owned(), ours)));
            }
            return bind(&self.files(&data), to, mode);
        }
        if let Some(name) = volume["secret"]["secretName"].as_str() {
            let secret = self.secrets.iter().find(|(known, _)| known == name);
            let (_, files) = secret.unwrap_or_else(|| panic!("no Secret {name}"));
            return bind(&self.files(files), to, mode);
        }
        if let Some(sources) = volume["projected"]["sources"].as_array() {
            assert_eq!(sources[0]["serviceAccountToken"]["path"], "token", "{volume}");
            let map = &sources[1]["configMap"];
            assert_eq!(
                (&map["name"], &map["items"][0]["path"]),
                (&"kube-root-ca.crt".into(), &"ca.crt".into())
            );
            assert!(sources.len() == 2 && !self.account.is_empty(), "{volume}");
            return bind(&self.files(&self.account), to, mode);
        }
        let empty = &volume["emptyDir"];
        assert!(empty.is_object(), "an unknown volume: {volume}");
        if empty["medium"] == "Memory" {
            let size = bytes(&empty["sizeLimit"]);
            return format!("type=tmpfs,src=tmpfs,dst={to},options={mode}:size={size}:mode=0777");
        }
        let folder = self.node.volume("emptydir");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        std::os::unix::fs::chown(&folder, Some(0), Some(0)).unwrap();
        bind(&folder, to, mode)
    }

    /// What ACK's pod identity webhook adds to a pod that asks for it, and whose service account names a role: variables,
    /// and a token of the pod.
    fn identity(&self, manifests: &[Value], workload: &Value) -> Vec<String> {
        let template = template(workload);
        if template["metadata"]["labels"]["pod-identity.alibabacloud.com/injection"] != "on" {
            return Vec::new();
        }
        let name = &template["spec"]["serviceAccountName"];
        let is_it = |m: &&Value| m["kind"] == "ServiceAccount" && &m["metadata"]["name"] == name;
        let account = manifests.iter().find(is_it).unwrap_or_else(|| panic!("no account {name}"));
        let role =
            text(&account["metadata"]["annotations"]["pod-identity.alibabacloud.com/role-name"]);
        let until = jiff::Timestamp::now().as_second() + 3_600;
        let claims = format!(r#"{{"iss":"i","aud":["sts.aliyuncs.com"],"exp":{until}}}"#);
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let at = "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens";
        let variables = [
            format!("ALIBABA_CLOUD_ROLE_ARN=acs:ram::1000000000000001:role/{role}"),
            "ALIBABA_CLOUD_OIDC_PROVIDER_ARN=acs:ram::1000000000000001:oidc-provider/ack"
                .to_owned(),
            format!("ALIBABA_CLOUD_OIDC_TOKEN_FILE={at}/token"),
            format!("TOLLGATE__KEYS__STS_ENDPOINT={}", self.url),
        ];
        let mount = bind(&self.files(&owned(&[("token", &token)])), at, "ro");
        let variables = variables.into_iter().flat_map(|set| ["--env".to_owned(), set]);
        variables.chain(["--mount".to_owned(), mount]).collect()
    }

    /// Starts the container of the workload's template, with all that the template says of it.
    pub(super) fn start<'p>(
        &self,
        pod: &'p Pod<'_>,
        manifests: &[Value],
        workload: &Value,
    ) -> Container<'p> {
        let (container, spec) = ours(workload);
        let mut flags = self.identity(manifests, workload);
        flags.extend(self.flags(manifests, container, spec));
        let args: Vec<_> = container["args"].as_array().unwrap().iter().map(text).collect();
        pod.start(&flags, &args)
    }

    /// Starts the container of this name, of a pod that is no workload's.
    pub(super) fn start_container<'p>(
        &self,
        pod: &'p Pod<'_>,
        manifests: &[Value],
        spec: &Value,
        name: &str,
    ) -> Container<'p> {
        let container = containers(spec).find(|container| container["name"] == name);
        let container = container.unwrap_or_else(|| panic!("no container {name}"));
        let args: Vec<_> = container["args"].as_array().unwrap().iter().map(text).collect();
        pod.start(&self.flags(manifests, container, spec), &args)
    }

    /// What a pod says of a container, as flags of `ctr`.
    fn flags(&self, manifests: &[Value], container: &Value, spec: &Value) -> Vec<String> {
        for field in container.as_object().unwrap().keys() {
            assert!(FOLLOWED.contains(&&**field), "the test does not follow {field}");
        }
        assert!(text(&container["image"]).ends_with("tollgate:0.1.0"), "{}", container["image"]);
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
        for set in container["env"].as_array().unwrap() {
            flag("--env", format!("{}={}", text(&set["name"]), text(&set["value"])));
        }
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let mut volumes = spec["volumes"].as_array().unwrap().iter();
            let volume = volumes.find(|volume| volume["name"] == mount["name"]);
            let volume = volume.unwrap_or_else(|| panic!("no volume for {mount}"));
            flag("--mount", self.mounted(manifests, volume, mount));
        }
        if !self.names.is_empty() {
            let lines = self.names.iter().map(|(name, address)| format!("{address} {name}\n"));
            let hosts = self.node.volume("names").join("hosts");
            std::fs::write(&hosts, lines.collect::<String>()).unwrap();
            flag("--mount", bind(&hosts, "/etc/hosts", "ro"));
        }
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
        flags
    }
}

fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap();
    let (number, unit) = text.split_at(text.len() - 2);
    number.parse::<u64>().unwrap() * if unit == "Gi" { 1 << 30 } else { 1 << 20 }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The number of a port that has a name.
pub(super) fn port(container: &Value, name: &Value) -> u64 {
    let mut ports = container["ports"].as_array().unwrap().iter();
    let port = ports.find(|port| &port["name"] == name);
    port.unwrap_or_else(|| panic!("no port {name}"))["containerPort"].as_u64().unwrap()
}

/// The status that a probe gets. A kubelet does not verify certificates.
async fn status(at: &str, asks: &Value) -> u16 {
    let path = text(&asks["path"]);
    if asks["scheme"] != "HTTPS" {
        return if tokio::net::TcpStream::connect(at).await.is_ok() {
            get(at, path).await.status
        } else {
            0
        };
    }
    let url = format!("https://{at}{path}");
    let words =
        ["-g", "-s", "-k", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", &url];
    let said = Command::new("curl").args(words).searched().await.expect("tests/setup.sh has curl");
    String::from_utf8(said.stdout).unwrap().parse().unwrap()
}

/// Asks as the kubelet does, until the probe passes.
pub(super) async fn passes(
    pod: &Pod<'_>,
    running: &mut Container<'_>,
    container: &Value,
    probe: &str,
) {
    let asks = &container[probe];
    let at = pod.at(port(container, &asks["httpGet"]["port"]));
    let mut ticks = interval(Duration::from_secs(asks["periodSeconds"].as_u64().unwrap()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let passed = timeout(BOUND, async {
        loop {
            ticks.tick().await;
            assert!(!running.is_over(), "it has ended: {}", running.log());
            if status(&at, &asks["httpGet"]).await == 200 {
                break;
            }
        }
    });
    assert!(passed.await.is_ok(), "{probe} never passes: {}", running.log());
}
