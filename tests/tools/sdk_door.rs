//! Unchanged SDKs of the provider against a sidecar's `[sdk]`, and the emulated provider behind it. Needs
//! `tests/setup.sh`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;
use tollgate::emulator::{Emulator, Fault, Then};
use tollgate::keys::{Key, Keys};
use tollgate::sidecar::Sidecar;

use crate::client::INSTANCE;
use crate::options;
use crate::support::manifests::root;
use crate::support::secrets::{Searched as _, Secrets};
use crate::support::{config, sidecar_with};

const SECRET: &str = "hushsecret-of-the-orders";
/// One that the caller's SDKs never have.
const CENTRAL: [&str; 2] = ["demo-key-id", "demo-key-secret"];

/// One of the provider's SDKs, and how it signs.
#[derive(Debug, Clone, Copy)]
enum SdkClient {
    /// The present one for Python, with this `signature_algorithm`.
    Python(&'static str),
    LegacyPython,
    /// One for Node, of this kind.
    Node(&'static str),
}

const CLIENTS: [SdkClient; 7] = [
    SdkClient::Python(""),
    SdkClient::Python("v2"),
    SdkClient::LegacyPython,
    SdkClient::Node("pop-post"),
    SdkClient::Node("pop-get"),
    SdkClient::Node("openapi-v3"),
    SdkClient::Node("openapi-v1"),
];

impl SdkClient {
    /// Makes these calls, and returns a result for each.
    async fn publish(self, address: &str, mut calls: Vec<Value>) -> Vec<Value> {
        if let Self::Python(signature) = self {
            for call in &mut calls {
                call["signature"] = signature.into();
            }
        }
        let calls = Value::from(calls).to_string();
        let python = root().join("target/test-venv/bin/python");
        let mut command = match self {
            Self::Python(_) | Self::LegacyPython => Command::new(python),
            Self::Node(_) => Command::new("node"),
        };
        match self {
            Self::Python(_) => command.arg(root().join("tests/python/sdk_publish.py")),
            Self::LegacyPython => command.arg(root().join("tests/python/sdk_legacy.py")),
            Self::Node(_) => command
                .arg(root().join("tests/clients/sdk.mjs"))
                .arg(root().join("target/test-npm")),
        };
        command.arg(address);
        if let Self::Node(kind) = self {
            command.arg(kind);
        }
        for name in ["http_proxy", "HTTP_PROXY"] {
            command.env_remove(name);
        }
        let run = command.arg(calls).kill_on_drop(true).searched();
        let output = timeout(Duration::from_mins(2), run).await.unwrap().unwrap();
        let mut secrets = Secrets::default();
        secrets.add(SECRET);
        secrets.search(&output);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{self:?}: run tests/setup.sh? {errors}");
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn call(payload: &str) -> Value {
    json!({
        "id": "orders-1", "secret": SECRET, "token": "", "signature": "",
        "instance": INSTANCE, "topic": "TopicA/p2p/GID_test@@@DEVICE_001", "payload": payload,
    })
}

fn with(part: &str, value: &str) -> Value {
    let mut call = call("x");
    call[part] = value.into();
    call
}

/// The emulated provider, and a sidecar before it that takes calls of SDKs.
struct Door {
    emulator: Emulator,
    _sidecar: Sidecar,
    address: String,
    _folder: TempDir,
}

impl Door {
    async fn open(flags: &[(&str, &str)]) -> Self {
        let emulator = Emulator::start(options()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("secret"), SECRET).unwrap();
        let callers = format!(
            r#"[{{ name = "orders", access_key_id = "orders-1", secret_file = "{}", topics = ["TopicA*"] }}]"#,
            path("secret")
        );
        let spool = path("spool");
        let base = [
            ("upstream.instance_id", INSTANCE),
            ("sdk.enabled", "true"),
            ("callers", &callers),
            ("spool.store", "disk"),
            ("spool.path", &spool),
        ];
        let config = config(&emulator.url(), &[&base[..], flags].concat());
        let key = Key::new(CENTRAL[0], CENTRAL[1].into(), None, None).unwrap();
        let (sidecar, address, _) = sidecar_with(&config, Keys::fixed(key)).await;
        Self { emulator, _sidecar: sidecar, address, _folder: folder }
    }

    async fn codes(&self, client: SdkClient, calls: Vec<Value>) -> Vec<String> {
        let results = client.publish(&self.address, calls).await;
        results
            .iter()
            .map(|result| result["Code"].as_str().unwrap_or_else(|| panic!("{result}")).to_owned())
            .collect()
    }
}

#[tokio::test]
async fn every_sdk_publishes_untouched_payloads() {
    let door = Door::open(&[]).await;
    let mut random = fastrand::Rng::with_seed(49_152);
    let longest = STANDARD.encode((0..49_152).map(|_| random.u8(..)).collect::<Vec<_>>());
    let odd = "blank +/=&?%*~ é \u{1f980} \u{0} \"\\\n";
    // Every third character is percent-encoded.
    let escaped = STANDARD.encode(vec![0xff; 49_152]);
    let payloads =
        [String::new(), "x".to_owned(), "A".repeat(4_096), longest, escaped, odd.to_owned()];
    for client in CLIENTS {
        // An empty parameter is left out by the SDKs of Node, and then missing.
        let from = usize::from(matches!(client, SdkClient::Node(_)));
        let sent = &payloads[from..];
        let before = door.emulator.messages().len();
        let mut results = Vec::new();
        // An argument of a program has a limit, which two of the long ones exceed.
        for calls in sent.chunk_by(|one, other| one.len() + other.len() < 60_000) {
            let calls = calls.iter().map(|payload| call(payload)).collect();
            results.extend(client.publish(&door.address, calls).await);
        }
        let messages = &door.emulator.messages()[before..];
        assert_eq!(
            (results.len(), messages.len()),
            (sent.len(), sent.len()),
            "{client:?} {results:?}"
        );
        for ((result, message), payload) in results.iter().zip(messages).zip(sent) {
            assert_eq!(result["MsgId"], message.msg_id, "{client:?}: {result}");
            assert_eq!(result["RequestId"].as_str().unwrap().len(), 36);
            assert_eq!(message.payload, *payload, "{client:?}");
            assert_eq!(message.topic, "TopicA/p2p/GID_test@@@DEVICE_001");
        }
    }
    let report = serde_json::to_value(door.emulator.report()).unwrap();
    let keys: Vec<_> = report["keys"].as_object().unwrap().keys().collect();
    assert_eq!(keys, [CENTRAL[0]], "{report}");
}

#[tokio::test]
async fn every_sdk_reads_refusals() {
    // Not the configuration refuses TopicB, but the caller's own topics do.
    let door = Door::open(&[("topics.allow", "Topic*")]).await;
    for client in CLIENTS {
        let calls = vec![
            with("secret", "hushsecret-of-another"),
            with("id", "nothing-1"),
            with("instance", "post-cn-another"),
            with("topic", "TopicB"),
            with("topic", "TopicA/+"),
        ];
        let wanted = [
            "SignatureDoesNotMatch",
            "InvalidAccessKeyId.NotFound",
            "InstancePermissionCheckFailed",
            "PermissionCheckFailed",
            "ParameterCheckFailed",
        ];
        let mut codes = door.codes(client, calls).await;
        // The older SDK compares the strings to sign, and says that the secret must be wrong.
        if codes[0] == "InvalidAccessKeySecret" {
            codes[0] = wanted[0].to_owned();
        }
        assert_eq!(codes, wanted, "{client:?}");
    }
    assert_eq!(door.emulator.report().calls, 0);
}

#[tokio::test]
async fn every_sdk_learns_what_became_of_its_message() {
    let door = Door::open(&[("sdk.wait", "1s")]).await;
    for client in CLIENTS {
        for (fault, wanted) in [
            (
                Fault { retry_after_ms: Some(60_000), ..Fault::answer("Throttling.User") },
                "Throttling.User",
            ),
            (Fault::answer("ParameterCheckFailed"), "ParameterCheckFailed"),
            (Fault { then: Then::DeliverThenClose, ..Fault::answer("") }, "InternalError"),
            // Of a load balancer, after which nothing is known.
            (Fault { then: Then::Html503, ..Fault::answer("") }, "InternalError"),
            (Fault::answer("SendMessageFailed"), "SendMessageFailed"),
        ] {
            let fault = Fault { code: fault.code.filter(|code| !code.is_empty()), ..fault };
            door.emulator.set_faults(vec![fault]).unwrap();
            let codes = door.codes(client, vec![call("x")]).await;
            assert_eq!(codes, [wanted], "{client:?}");
        }
        door.emulator.set_faults(Vec::new()).unwrap();
    }
}

/// A call is taken once, whoever sends it again.
#[tokio::test]
async fn a_call_that_is_sent_again_is_refused() {
    let door = Door::open(&[]).await;
    let (address, mut seen) = recording_proxy(&door.address).await;
    let results = SdkClient::Python("").publish(&address, vec![call("x")]).await;
    assert!(results[0]["MsgId"].is_string(), "{results:?}");
    let first = seen.recv().await.unwrap();
    let again = sent(&door.address, &first).await;
    assert_eq!(again.json()["Code"], "SignatureNonceUsed", "{}", again.text());
    assert_eq!(door.emulator.messages().len(), 1);
}

/// Where nothing is proven, the provider's own keys are not welcome either.
#[tokio::test]
async fn any_key_but_the_providers() {
    let door = Door::open(&[("sdk.accept", "any"), ("callers", "[]")]).await;
    let client = SdkClient::Python("");
    let results = client.publish(&door.address, vec![with("id", "whatever")]).await;
    assert!(results[0]["MsgId"].is_string(), "{results:?}");
    let provider = vec![with("id", "LTAI-looks-like-one"), with("id", "STS.looks-like-one")];
    let codes = door.codes(client, provider).await;
    assert_eq!(codes, ["InvalidAccessKeyId.Inactive"; 2]);
}

/// The answer to these bytes, after which nothing follows.
async fn sent(to: &str, bytes: &[u8]) -> crate::support::http::Answer {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    crate::support::http::parse(&answer).unwrap()
}

/// Passes one connection on, and hands out what its client has sent.
async fn recording_proxy(to: &str) -> (String, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, seen) = tokio::sync::mpsc::unbounded_channel();
    let to = to.to_owned();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
        let mut request = vec![0; 1 << 16];
        let length = client.read(&mut request).await.unwrap();
        request.truncate(length);
        server.write_all(&request).await.unwrap();
        sender.send(request).unwrap();
        drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
    });
    (address, seen)
}

/// What is not delivered in time is kept where that is asked for, and travels later as the SDK had it.
#[tokio::test]
async fn a_message_may_be_kept() {
    let door = Door::open(&[("sdk.wait", "500ms"), ("sdk.kept", "accept")]).await;
    let failing = Fault::answer("SendMessageFailed");
    door.emulator.set_faults(vec![failing]).unwrap();
    let results = SdkClient::Python("").publish(&door.address, vec![call("aGVsbG8=")]).await;
    assert!(results[0]["MsgId"].as_str().unwrap().starts_with("TOLLGATE-"), "{results:?}");
    door.emulator.set_faults(Vec::new()).unwrap();
    crate::support::until("it is delivered", async || door.emulator.messages().len() == 1).await;
    assert_eq!(door.emulator.messages()[0].payload, "aGVsbG8=");
}
