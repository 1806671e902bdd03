//! Calls as they went over the wire from the provider's Python SDK (1.7.1, key `testid`), byte for
//! byte: its `+` for a blank, its order of parameters, its signed `accept` and `user-agent`.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate::emulator::{Emulator, EmulatorOptions, KeyPair};

use crate::options;
use crate::support::http::BOUND;

/// When the captures were made.
const THEN: i64 = 1_704_164_645; // 2024-01-02T03:04:05Z

const V3: &str = "\
POST /?InstanceId=post-cn-0pp12gl0000&MqttTopic=TopicA%2Fsub+1%2F%C3%A9%2A~&Payload=aGVsbG8%2Bd29ybGQ%2F HTTP/1.1
Accept-Encoding: identity
host: 127.0.0.1:45979
x-acs-version: 2020-04-20
x-acs-action: SendMessage
user-agent: AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2
x-acs-date: 2024-01-02T03:04:05Z
x-acs-signature-nonce: 3ee8c1b883d344afa94f4e0ad82fd6cf
accept: application/json
x-acs-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
x-acs-credentials-provider: static_ak
Authorization: ACS3-HMAC-SHA256 Credential=testid,SignedHeaders=accept;host;user-agent;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-signature-nonce;x-acs-version,Signature=49b59260bcfc6a14baabeb34d0ec33def2fa03ed3578ca7498882f23c956520b
Content-Length: 0

";

const V1_STS: &str = "\
POST /?Action=SendMessage&Format=json&Version=2020-04-20&Timestamp=2024-01-02T03%3A04%3A05Z&SignatureNonce=3ee8c1b883d344afa94f4e0ad82fd6cf&InstanceId=post-cn-0pp12gl0000&MqttTopic=TopicA%2Fsub+1%2F%C3%A9%2A~&Payload=aGVsbG8%2Bd29ybGQ%2F&SecurityToken=CAISsecuritytoken%3D%3D&SignatureMethod=HMAC-SHA1&SignatureVersion=1.0&AccessKeyId=testid&Signature=e%2FqIPJc6fG177SGlousU0wFSWYY%3D HTTP/1.1
Accept-Encoding: identity
host: 127.0.0.1:33497
x-acs-version: 2020-04-20
x-acs-action: SendMessage
user-agent: AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2
x-acs-credentials-provider: static_sts
Content-Length: 0

";

const V3_STS: &str = "\
POST /?InstanceId=post-cn-0pp12gl0000&MqttTopic=TopicA%2Fsub+1%2F%C3%A9%2A~&Payload=aGVsbG8%2Bd29ybGQ%2F HTTP/1.1
Accept-Encoding: identity
host: 127.0.0.1:46805
x-acs-version: 2020-04-20
x-acs-action: SendMessage
user-agent: AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2
x-acs-date: 2024-01-02T03:04:05Z
x-acs-signature-nonce: 3ee8c1b883d344afa94f4e0ad82fd6cf
accept: application/json
x-acs-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
x-acs-credentials-provider: static_sts
x-acs-accesskey-id: testid
x-acs-security-token: CAISsecuritytoken==
Authorization: ACS3-HMAC-SHA256 Credential=testid,SignedHeaders=accept;host;user-agent;x-acs-accesskey-id;x-acs-action;x-acs-content-sha256;x-acs-credentials-provider;x-acs-date;x-acs-security-token;x-acs-signature-nonce;x-acs-version,Signature=7f809463e25134916d3449d23b8dcbf26d82b37f2f0057bec33f088c173f9e1c
Content-Length: 0

";

/// The code answered to a capture at the time it was made.
async fn code_of(capture: &str, key: KeyPair) -> String {
    let clock_offset = THEN - jiff::Timestamp::now().as_second();
    let emulator =
        Emulator::start(EmulatorOptions { clock_offset, keys: vec![key], ..options() }).unwrap();
    let mut stream = TcpStream::connect(emulator.address()).await.unwrap();
    let request = capture
        .replace('\n', "\r\n")
        .replace("Content-Length", "connection: close\r\nContent-Length");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = timeout(BOUND, stream.read_to_string(&mut answer)).await;
    read.unwrap().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["Code"].as_str().unwrap_or_default().to_owned()
}

/// The captures' topic holds a blank and more, so the call is refused, but not before its
/// signature was found right.
const RIGHTLY_SIGNED: &str = "ParameterCheckFailed";

#[tokio::test]
async fn captured_calls_are_rightly_signed() {
    let lasting = KeyPair::new("testid", "testsecret");
    let temporary = KeyPair::with_token("testid", "testsecret", "CAISsecuritytoken==");
    assert_eq!(code_of(V3, lasting).await, RIGHTLY_SIGNED);
    assert_eq!(code_of(V1_STS, temporary.clone()).await, RIGHTLY_SIGNED);
    assert_eq!(code_of(V3_STS, temporary).await, RIGHTLY_SIGNED);
}

#[tokio::test]
async fn captured_calls_that_were_tampered_with_are_not() {
    let lasting = KeyPair::new("testid", "testsecret");
    for (from, to) in [
        ("aGVsbG8", "aGVsbG9"),
        ("sub+1", "sub%2B1"),
        ("45979", "45980"),
        ("static_ak", "static_sts"),
    ] {
        let tampered = V3.replace(from, to);
        assert_eq!(code_of(&tampered, lasting.clone()).await, "SignatureDoesNotMatch", "{from}");
    }
}
