//! `[sdk]`: calls that are signed, as the provider's SDKs sign them: whose they are, and what they may do.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tollgate::config::SignatureVersion;
use tollgate::signing::{Call, Credentials, Stamp, sign};

use crate::callers::Stand;
use crate::support::http::{Answer, post};
use crate::support::script::Script;
use crate::support::{INSTANCE, config, sidecar};

const ORDERS: Credentials<'static> =
    Credentials { id: "orders-1", secret: "hushsecret-of-the-orders", token: None };
const ALARMS: Credentials<'static> =
    Credentials { id: "alarms-1", secret: "hushsecret-of-the-alarms", token: None };
pub(crate) const BOTH: [SignatureVersion; 2] = [SignatureVersion::HmacSha1, SignatureVersion::Acs3];

async fn stand() -> Stand {
    let settings = |path: &dyn Fn(&str) -> String| {
        let callers = format!(
            r#"[{{ name = "orders", access_key_id = "orders-1", secret_file = "{}", topics = ["Order*"] }},
                {{ name = "alarms", access_key_id = "alarms-1", secret_file = "{}", topics = ["Alarm/*"] }}]"#,
            path(ORDERS.id),
            path(ALARMS.id)
        );
        vec![("callers", callers), ("sdk.enabled", "true".to_owned())]
    };
    Stand::with(&[(ORDERS.id, ORDERS.secret), (ALARMS.id, ALARMS.secret)], settings).await
}

/// A call as it is sent: its path, headers and body.
pub(crate) struct SignedCall {
    pub(crate) path: String,
    headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

fn signed(
    version: SignatureVersion,
    key: &Credentials<'_>,
    topic: &str,
    stamp: &Stamp,
) -> SignedCall {
    let params = [("InstanceId", INSTANCE), ("MqttTopic", topic), ("Payload", "eA==")];
    signed_call(version, key, "SendMessage", &params, stamp)
}

/// A call of any operation. Its parameters are sorted by name.
pub(crate) fn signed_call(
    version: SignatureVersion,
    key: &Credentials<'_>,
    action: &str,
    params: &[(&str, &str)],
    stamp: &Stamp,
) -> SignedCall {
    // As the requests of these tests name their host.
    let call = Call { authority: "localhost", action, version: "2020-04-20", params };
    let signed = sign(version, &call, key, stamp);
    let path = if signed.query.is_empty() { "/".to_owned() } else { format!("/?{}", signed.query) };
    SignedCall { path, headers: signed.headers, body: signed.body.into() }
}

pub(crate) async fn send(address: &str, call: &SignedCall) -> Answer {
    let headers: Vec<_> =
        call.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    post(address, &call.path, &headers, &call.body).await
}

pub(crate) fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["Code"].as_str().unwrap_or_default().to_owned())
}

fn ago(minutes: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_mins(minutes)
}

#[tokio::test]
async fn who_may_send_what() {
    let stand = stand().await;
    let to = stand.serve.publish.clone();
    let mut nonce = 0;
    let mut stamp = |at| {
        nonce += 1;
        Stamp::new(at, nonce)
    };
    let now = || ago(0);
    let wrong_secret = Credentials { secret: ALARMS.secret, ..ORDERS };
    let stranger = Credentials { id: "nobody-1", ..ORDERS };
    let with_token = Credentials { token: Some("CAIS-not-a-token-of-ours"), ..ORDERS };
    for version in BOTH {
        for (key, topic, at, wanted) in [
            (&ORDERS, "Order1", now(), (200, "")),
            (&ORDERS, "Order1/sub", now(), (200, "")),
            (&ALARMS, "Alarm/fire", now(), (200, "")),
            // Another's topic, in every spelling.
            (&ORDERS, "Alarm/fire", now(), (400, "PermissionCheckFailed")),
            (&ORDERS, "order1", now(), (400, "PermissionCheckFailed")),
            (&ALARMS, "Order1", now(), (400, "PermissionCheckFailed")),
            (&ORDERS, "Order1/+", now(), (400, "ParameterCheckFailed")),
            // Proofs that are none.
            (&wrong_secret, "Order1", now(), (400, "SignatureDoesNotMatch")),
            (&stranger, "Order1", now(), (404, "InvalidAccessKeyId.NotFound")),
            (&with_token, "Order1", now(), (400, "InvalidSecurityToken.MismatchWithAccessKey")),
            // Too old, and too far ahead.
            (&ORDERS, "Order1", ago(20), (400, "InvalidTimeStamp.Expired")),
            (&ORDERS, "Order1", ago(-20), (400, "InvalidTimeStamp.Expired")),
        ] {
            let answer = send(&to, &signed(version, key, topic, &stamp(at))).await;
            let (status, found) = code(&answer);
            assert_eq!(
                (status, &*found),
                wanted,
                "{version:?} {} {topic}: {}",
                key.id,
                answer.text()
            );
            for member in ["RequestId", "HostId", "Message"] {
                assert_eq!(
                    answer.json().get(member).is_some(),
                    status != 200 || member == "RequestId"
                );
            }
        }
    }
    assert_eq!(stand.script.requests().len(), 6);
    let central = stand.script.requests().iter().all(|request| !request.contains("orders-1"));
    assert!(central, "tollgate signs with its own key");
}

/// A call that is sent again, be it by its caller or by one who has seen it; also where the rest is another's.
#[tokio::test]
async fn no_call_counts_twice() {
    let stand = stand().await;
    let to = stand.serve.publish.clone();
    for (version, nonce) in BOTH.into_iter().zip(1..) {
        let call = signed(version, &ORDERS, "Order1", &Stamp::new(ago(0), nonce));
        assert_eq!(send(&to, &call).await.status, 200);
        assert_eq!(code(&send(&to, &call).await), (400, "SignatureNonceUsed".to_owned()));
        // A nonce of another caller is its own.
        let others = signed(version, &ALARMS, "Alarm/x", &Stamp::new(ago(0), nonce));
        assert_eq!(send(&to, &others).await.status, 200);
        // The signature is of these parameters.
        let stamp = Stamp::new(ago(0), nonce + 10);
        let mut call = signed(version, &ORDERS, "Order1", &stamp);
        call.path = call.path.replace("Order1", "Order2");
        call.body = String::from_utf8_lossy(&call.body).replace("Order1", "Order2").into();
        assert_eq!(code(&send(&to, &call).await), (400, "SignatureDoesNotMatch".to_owned()));
    }
    assert_eq!(stand.script.requests().len(), 4);
}

/// One too many of a caller, at an address of the SDKs' own; at the callers' address there are none then.
#[tokio::test]
async fn a_rate_and_an_address_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, ALARMS.secret).unwrap();
    let callers = format!(
        r#"[{{ name = "alarms", access_key_id = "alarms-1", secret_file = "{}", calls_per_second = 2 }}]"#,
        secret.display()
    );
    let script = Script::start([]).await;
    let flags = [("callers", &*callers), ("sdk.enabled", "true"), ("sdk.listen", "127.0.0.1:0")];
    let (running, publish, _) = sidecar(&config(&script.url, &flags)).await;
    let own = running.addresses().sdk[0].clone();
    let call = |nonce| signed(BOTH[0], &ALARMS, "Alarm/x", &Stamp::new(ago(0), nonce));
    assert_eq!(send(&publish, &call(1)).await.status, 404);
    let mut throttled = 0;
    for nonce in 2..14 {
        let answer = send(&own, &call(nonce)).await;
        if code(&answer) == (400, "Throttling.User".to_owned()) {
            assert!(answer.header("x-acs-retry-after").parse::<u64>().unwrap() >= 1);
            throttled += 1;
        } else {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    assert!(throttled > 0, "two a second");
}
