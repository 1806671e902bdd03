//! A caller of the emulator: signs with code of its own and speaks HTTP over one connection.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::digest::KeyInit as _;
use hmac::{Hmac, Mac as _};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpSocket, TcpStream};
use tollgate::emulator::{DEMO_KEY_ID, DEMO_KEY_SECRET, Emulator, EmulatorOptions, KeyPair};

const FORM: &str = "application/x-www-form-urlencoded";
pub(crate) const INSTANCE: &str = "post-cn-test";

/// On a free port, without ceilings, and with temporary keys beside the demo key.
pub(crate) fn options() -> EmulatorOptions {
    let keys = [
        KeyPair::with_token("sts-1", "sts-secret", "CAIS-token-1+/=="),
        KeyPair::with_token("sts-2", "sts-secret", "CAIS-token-2+/=="),
    ];
    let default = EmulatorOptions::default();
    EmulatorOptions {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        account_qps: 0,
        egress_ip_qps: 0,
        keys: default.keys.iter().cloned().chain(keys).collect(),
        ..default
    }
}

pub(crate) async fn start(options: EmulatorOptions) -> (Emulator, Client) {
    let emulator = Emulator::start(options).unwrap();
    let client = Client::connect(emulator.address()).await;
    (emulator, client)
}

/// Where the business parameters go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Query,
    Form,
}

/// Which signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V3,
}

/// A call before it is signed; what a test wants to be wrong is changed here.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) version: Version,
    pub(crate) place: Place,
    pub(crate) method: &'static str,
    pub(crate) key: KeyPair,
    pub(crate) action: String,
    pub(crate) api_version: String,
    pub(crate) time: String,
    pub(crate) nonce: String,
    /// Business parameters, and for V1 what else a test adds.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Call {
    pub(crate) fn new(topic: &str, payload: &str) -> Self {
        let parameters = [("InstanceId", INSTANCE), ("MqttTopic", topic), ("Payload", payload)];
        Self {
            version: Version::V3,
            place: Place::Query,
            method: "POST",
            key: KeyPair::new(DEMO_KEY_ID, DEMO_KEY_SECRET),
            action: "SendMessage".to_owned(),
            api_version: "2020-04-20".to_owned(),
            time: time(0),
            nonce: uuid::Uuid::new_v4().to_string(),
            parameters: parameters.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        }
    }

    pub(crate) fn without(mut self, parameter: &str) -> Self {
        self.parameters.retain(|(name, _)| name != parameter);
        self
    }

    pub(crate) fn with(mut self, parameter: &str, value: &str) -> Self {
        self = self.without(parameter);
        self.parameters.push((parameter.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn signed(&self, host: &str) -> Request<Full<Bytes>> {
        match self.version {
            Version::V1 => self.signed_v1(host),
            Version::V3 => self.signed_v3(host),
        }
    }

    fn signed_v1(&self, host: &str) -> Request<Full<Bytes>> {
        let mut all = self.parameters.clone();
        let mut common = vec![
            ("Action", self.action.as_str()),
            ("Version", &self.api_version),
            ("Format", "JSON"),
            ("AccessKeyId", &self.key.id),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            ("SignatureNonce", &self.nonce),
            ("Timestamp", &self.time),
        ];
        common.extend(self.key.token.as_deref().map(|token| ("SecurityToken", token)));
        // what the test gave goes before what is usual; empty means that it is left out
        for (name, value) in common {
            if !all.iter().any(|(given, _)| given == name) {
                all.push((name.to_owned(), value.to_owned()));
            }
        }
        all.retain(|(_, value)| !value.is_empty());
        let to_sign = format!("{}&%2F&{}", self.method, encode(&query(&all)));
        let mut mac =
            Hmac::<Sha1>::new_from_slice(format!("{}&", self.key.secret).as_bytes()).unwrap();
        mac.update(to_sign.as_bytes());
        all.push(("Signature".to_owned(), STANDARD.encode(mac.finalize().into_bytes())));
        let sent = query(&all);
        let request = Request::builder().method(self.method).header("host", host);
        match self.place {
            Place::Query => request.uri(format!("/?{sent}")).body(Full::default()),
            Place::Form => {
                request.uri("/").header("content-type", FORM).body(Full::from(sent.into_bytes()))
            }
        }
        .unwrap()
    }

    fn signed_v3(&self, host: &str) -> Request<Full<Bytes>> {
        let sent = query(&self.parameters);
        let (query, body) = match self.place {
            Place::Query => (sent, String::new()),
            Place::Form => (String::new(), sent),
        };
        let hash = hex(&Sha256::digest(&body));
        let mut headers = vec![
            ("host", host),
            ("x-acs-action", &self.action),
            ("x-acs-content-sha256", &hash),
            ("x-acs-date", &self.time),
            ("x-acs-signature-nonce", &self.nonce),
            ("x-acs-version", &self.api_version),
        ];
        headers.extend(self.key.token.as_deref().map(|token| ("x-acs-security-token", token)));
        headers.extend((self.place == Place::Form).then_some(("content-type", FORM)));
        headers.retain(|(_, value)| !value.is_empty());
        headers.sort_unstable();
        let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = format!("{}\n/\n{query}\n", self.method);
        for (name, value) in &headers {
            writeln!(canonical, "{name}:{value}").unwrap();
        }
        write!(canonical, "\n{names}\n{hash}").unwrap();
        let to_sign = format!("ACS3-HMAC-SHA256\n{}", hex(&Sha256::digest(&canonical)));
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.secret.as_bytes()).unwrap();
        mac.update(to_sign.as_bytes());
        let signature = hex(&mac.finalize().into_bytes());
        let authorization = format!(
            "ACS3-HMAC-SHA256 Credential={},SignedHeaders={names},Signature={signature}",
            self.key.id
        );
        let mut request = Request::builder().method(self.method).uri(format!("/?{query}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.header("authorization", authorization).body(Full::from(body)).unwrap()
    }
}

/// This machine's time and so many seconds, as the provider wants it.
pub(crate) fn time(offset: i64) -> String {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + offset);
    now.unwrap().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn query(pairs: &[(String, String)]) -> String {
    let mut pairs: Vec<_> = pairs.iter().map(|(n, v)| (encode(n), encode(v))).collect();
    pairs.sort_unstable();
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

fn encode(text: &str) -> String {
    const SET: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    percent_encoding::utf8_percent_encode(text, SET).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The member `Code`, or empty.
    pub(crate) fn code(&self) -> String {
        self.json()["Code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// One connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), address).await
    }

    /// From another of this machine's loopback addresses.
    pub(crate) async fn connect_from(source: &str, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
        Self::over(socket.connect(address).await.unwrap(), address).await
    }

    async fn over(stream: TcpStream, address: SocketAddr) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, host: address.to_string() }
    }

    pub(crate) async fn try_send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Answer> {
        self.sender.ready().await?;
        let (parts, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    pub(crate) async fn try_call(&mut self, call: &Call) -> hyper::Result<Answer> {
        let request = call.signed(&self.host);
        self.try_send(request).await
    }

    pub(crate) async fn call(&mut self, call: &Call) -> Answer {
        self.try_call(call).await.unwrap()
    }

    /// Publishes and expects that it is taken; the `MsgId`.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &str) -> String {
        let answer = self.call(&Call::new(topic, payload)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["MsgId"].as_str().unwrap().to_owned()
    }

    /// A request without a signature.
    pub(crate) async fn plain(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder().method(method).uri(path).header("host", &self.host);
        self.try_send(request.body(Full::from(body.to_owned())).unwrap()).await.unwrap()
    }
}
