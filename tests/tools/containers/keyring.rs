//! The chart's keyring as its pod runs: ready only with a key of its own and the key set of its cluster, and a sidecar in
//! another pod publishes with what it hands out.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::drills::Provider;
use super::kubelet::{Cluster, KEY, passes};
use super::node::Node;
use super::say;
use crate::kubernetes::{example_chart, ours, template};
use crate::support::authority::certify;
use crate::support::http::{BOUND, get, post};
use crate::support::manifests::{of, rendered};
use crate::support::until;

/// Of the API server, for the pod's service account.
const ACCOUNT: &str = "token-of-the-keyrings-account";
/// What the sidecar proves itself by.
const SHARED: &str = "shared-token-of-the-orders";
const NAME: &str = "tollgate-keyring.infra.svc";

/// The API server, as far as it tells the public keys of its cluster's tokens. Returns its port and its authority.
async fn api_server() -> (u16, String) {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certify(folder.path(), &["kubernetes.default.svc"]);
    let authority = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // The example of RFC 7517.
    let set = json!({"keys": [{
        "kty": "EC", "crv": "P-256", "kid": "1", "use": "sig", "alg": "ES256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    }]})
    .to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let (mut head, mut buffer) = (String::new(), [0; 4_096]);
            while !head.contains("\r\n\r\n") {
                let Ok(read @ 1..) = stream.read(&mut buffer).await else { break };
                head.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
            let is_known = head.starts_with("GET /openid/v1/jwks ")
                && head
                    .to_ascii_lowercase()
                    .contains(&format!("authorization: bearer {ACCOUNT}\r\n"));
            let status = if is_known { "200 OK" } else { "403 Forbidden" };
            let length = set.len();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            drop(stream.write_all((head + &set).as_bytes()).await);
            drop(stream.shutdown().await);
        }
    });
    (port, authority)
}

/// The chart with these values.
fn helm(release: &str, chart: &str, values: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values).unwrap();
    let path = file.path().display().to_string();
    rendered("helm", &["template", release, chart, "--namespace", "infra", "--values", &path])
}

fn keyring(port: u16) -> Vec<Value> {
    let values = format!(
        r#"
mode: keyring
fullnameOverride: tollgate-keyring
secret: tollgate
config: |
  [keys]
  sts_endpoint = "https://sts.cn-hangzhou.aliyuncs.com"
keyring:
  roleArn: acs:ram::1000000000000001:role/tollgate
  tlsSecret: tollgate-keyring-tls
  issuers:
    - issuer: https://kubernetes.default.svc
      jwks: https://kubernetes.default.svc:{port}/openid/v1/jwks
      ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
      token_file: /var/run/secrets/kubernetes.io/serviceaccount/token
  callers:
    - {{ name: orders, token_file: /tokens/orders, instances: [post-cn-0pp12gl0000], topics: [TopicA] }}
extraVolumes: [{{ name: tokens, secret: {{ secretName: callers }} }}]
extraVolumeMounts: [{{ name: tokens, mountPath: /tokens, readOnly: true }}]
"#
    );
    helm("demo", "deploy/helm/tollgate", &values)
}

/// A sidecar whose key comes from the keyring. Only the tests' port is not the document's.
fn sidecar() -> Vec<Value> {
    let values = format!(
        r#"
tollgate:
  publish: {{ listen: "[::]:8080" }}
  config: |
    [upstream]
    endpoint = "https://onsmqtt-vpc.cn-hangzhou.aliyuncs.com"
    instance_id = "post-cn-0pp12gl0000"
    [ceilings]
    account = 100
    egress_ip = 30
    [keys]
    source = "uri"
    uri = "https://{NAME}:9465/credentials"
    uri_token_file = "/var/run/secrets/tollgate-keyring/token"
    uri_ca_file = "/var/run/secrets/tollgate-keyring/ca.crt"
  extraVolumes: [{{ name: keyring, secret: {{ secretName: keyring }} }}]
  extraVolumeMounts: [{{ name: keyring, mountPath: /var/run/secrets/tollgate-keyring, readOnly: true }}]
"#
    );
    let chart = example_chart();
    // Its pod is not one that RRSA's webhook changes.
    let workload = chart.path().join("orders/templates/deployment.yaml");
    let text = std::fs::read_to_string(&workload).unwrap();
    let label = "        pod-identity.alibabacloud.com/injection: \"on\"\n";
    assert!(text.contains(label));
    std::fs::write(&workload, text.replace(label, "")).unwrap();
    helm("demo", chart.path().join("orders").to_str().unwrap(), &values)
}

pub(super) async fn hands_a_key_to_a_sidecar(node: &Node) {
    let provider = Provider::start("[]").await;
    let (port, authority) = api_server().await;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certify(folder.path(), &[NAME]);
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let ca = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
    let mut cluster = Cluster::of(node, &provider)
        .with_account(ACCOUNT, &authority)
        .with_secret("tollgate", KEY)
        .with_secret("tollgate-keyring-tls", &[("tls.crt", &certificate), ("tls.key", &key)])
        .with_secret("callers", &[("orders", SHARED)])
        .with_secret("keyring", &[("token", SHARED), ("ca.crt", &ca)]);
    let [holder, app] = [node.pod(), node.pod()];
    cluster.resolves("kubernetes.default.svc", Node::gateway().trim_matches(['[', ']']));
    let address = holder.at(9_465);
    cluster.resolves(NAME, address.trim_start_matches('[').split(']').next().unwrap());

    let manifests = keyring(port);
    // As Helm does before it changes anything.
    let hook = template(of(&manifests, "Job"));
    let checked = cluster.start_container(&holder, &manifests, &hook["spec"], "check");
    let checked = checked.ended(BOUND).await.expect("the check ends");
    assert_eq!(checked.code, 0, "{}", checked.log);
    let workload = of(&manifests, "Deployment");
    let (container, _) = ours(workload);
    let mut running = cluster.start(&holder, &manifests, workload);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        passes(&holder, &mut running, container, probe).await;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    for line in ["Uid:\t65532\t65532", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }

    let manifests = sidecar();
    let workload = of(&manifests, "Deployment");
    let (container, _) = ours(workload);
    let mut beside = cluster.start(&app, &manifests, workload);
    passes(&app, &mut beside, container, "startupProbe").await;
    passes(&app, &mut beside, container, "readinessProbe").await;
    let answer = post(&beside.publish, "/publish/TopicA", &[], b"by the keyring's key").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    until("it is delivered", async || provider.has().await.contains("by")).await;
    // It was a key of the role, for what this caller may do.
    let keys = get(&provider.emulator.address, "/_emulator/keys").await.json();
    let keys = keys.as_array().unwrap();
    let issued = keys.iter().find(|key| key["role"]["session_name"] == "orders");
    let statement = &issued.unwrap_or_else(|| panic!("{keys:?}"))["policy"]["Statement"][0];
    assert_eq!(statement["Resource"], json!(["acs:mq:*:*:topic/post-cn-0pp12gl0000/TopicA"]));
    let log = running.log();
    assert!(log.contains("key handed out") && !log.contains(SHARED), "{log}");
    for container in [beside, running] {
        assert_eq!(container.stop(BOUND).await.expect("it ends in its grace").code, 0);
    }
    say(
        "keyring: ready over HTTPS as rendered, and a sidecar in another pod has published with its key",
    );
}
