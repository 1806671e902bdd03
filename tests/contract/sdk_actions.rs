//! `sdk.actions`: calls of other operations, which are passed on.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use tollgate::config::SignatureVersion;
use tollgate::emulator::{Emulator, EmulatorOptions, KeyPair};
use tollgate::sidecar::Sidecar;
use tollgate::signing::{Credentials, Stamp};

use crate::callers::Stand;
use crate::sdk::{BOTH, SignedCall, code, send, signed_call};
use crate::support::http::{get, series};
use crate::support::script::{self, Say, Script};
use crate::support::{INSTANCE, config, sidecar, until};

const OPS: Credentials<'static> =
    Credentials { id: "ops-1", secret: "hushsecret-of-the-operators", token: None };
const ORDERS: Credentials<'static> =
    Credentials { id: "orders-1", secret: "hushsecret-of-the-orders", token: None };
const OF_INSTANCE: [(&str, &str); 2] = [("InstanceId", INSTANCE), ("Resources", "Order1,Order2/*")];

/// A stamp that no other call of these tests has.
fn stamp() -> Stamp {
    static NONCE: AtomicU64 = AtomicU64::new(1);
    Stamp::new(Timestamp::now(), NONCE.fetch_add(1, Ordering::Relaxed).into())
}

fn call(version: SignatureVersion, action: &str) -> SignedCall {
    signed_call(version, &OPS, action, &OF_INSTANCE, &stamp())
}

/// One that takes any caller, and passes these operations on.
async fn with_actions(
    endpoint: &str,
    actions: &str,
    more: &[(&str, &str)],
) -> (Sidecar, String, String) {
    let flags = [("sdk.enabled", "true"), ("sdk.accept", "any"), ("sdk.actions", actions)];
    sidecar(&config(endpoint, &[&flags[..], more].concat())).await
}

#[tokio::test]
async fn who_may_call_what() {
    let settings = |path: &dyn Fn(&str) -> String| {
        let callers = format!(
            r#"[{{ name = "ops", access_key_id = "ops-1", secret_file = "{}" }},
                {{ name = "orders", access_key_id = "orders-1", secret_file = "{}", topics = ["Order*"] }}]"#,
            path(OPS.id),
            path(ORDERS.id)
        );
        let actions = r#"["ApplyToken", "CloseConnection=3", "DeleteCaCertificate"]"#.to_owned();
        vec![("callers", callers), ("sdk.enabled", "true".to_owned()), ("sdk.actions", actions)]
    };
    let secrets = [(OPS.id, OPS.secret), (ORDERS.id, ORDERS.secret)];
    let stand = Stand::with(&secrets, settings).await;
    let to = stand.serve.publish.clone();
    let wrong_secret = Credentials { secret: ORDERS.secret, ..OPS };
    let other = [("InstanceId", "post-cn-other"), OF_INSTANCE[1]];
    let twice = [OF_INSTANCE[0], ("InstanceId", "post-cn-other"), OF_INSTANCE[1]];
    let spelled = [OF_INSTANCE[0], ("instanceid", "post-cn-other")];
    // As the operations for certificates have it.
    let mqtt = [("MqttInstanceId", INSTANCE), ("Sn", "1")];
    let both = [OF_INSTANCE[0], ("MqttInstanceId", "post-cn-other")];
    let other_mqtt = [("MqttInstanceId", "post-cn-other")];
    let in_small = [("instanceid", INSTANCE)];
    let others_account = [OF_INSTANCE[0], ("ResourceOwnerId", "1")];
    let common = [OF_INSTANCE[0], ("accesskeyid", "another")];
    let names: Vec<_> = (0..300).map(|n| format!("P{n:03}")).collect();
    let many: Vec<_> =
        [OF_INSTANCE[0]].into_iter().chain(names.iter().map(|n| (&**n, "x"))).collect();
    for version in BOTH {
        for (key, action, params, wanted) in [
            (&OPS, "ApplyToken", &OF_INSTANCE[..], (200, "")),
            (&OPS, "CloseConnection", &OF_INSTANCE[..], (200, "")),
            // Not listed, and not as it is spelled.
            (&OPS, "RevokeToken", &OF_INSTANCE[..], (404, "ApiNotSupport")),
            (&OPS, "applytoken", &OF_INSTANCE[..], (404, "ApiNotSupport")),
            // A token would open every topic to a caller that has its own.
            (&ORDERS, "ApplyToken", &OF_INSTANCE[..], (400, "PermissionCheckFailed")),
            // An instance of others, however it is named.
            (&OPS, "ApplyToken", &other[..], (400, "InstancePermissionCheckFailed")),
            (&OPS, "ApplyToken", &twice[..], (400, "ParameterCheckFailed")),
            (&OPS, "ApplyToken", &spelled[..], (400, "ParameterCheckFailed")),
            (&OPS, "ApplyToken", &in_small[..], (400, "MissingParameter")),
            (&OPS, "DeleteCaCertificate", &mqtt[..], (200, "")),
            (&OPS, "DeleteCaCertificate", &both[..], (400, "ParameterCheckFailed")),
            (&OPS, "DeleteCaCertificate", &other_mqtt[..], (400, "InstancePermissionCheckFailed")),
            // What tollgate's key reaches beside.
            (&OPS, "ApplyToken", &others_account[..], (400, "ParameterCheckFailed")),
            (&OPS, "ApplyToken", &common[..], (400, "ParameterCheckFailed")),
            (&OPS, "ApplyToken", &many[..], (400, "ParameterCheckFailed")),
            (&OPS, "ApplyToken", &OF_INSTANCE[1..], (400, "MissingParameter")),
            (&wrong_secret, "ApplyToken", &OF_INSTANCE[..], (400, "SignatureDoesNotMatch")),
        ] {
            let answer = send(&to, &signed_call(version, key, action, params, &stamp())).await;
            let (status, found) = code(&answer);
            assert_eq!((status, &*found), wanted, "{version:?} {action}: {}", answer.text());
        }
        let again = call(version, "ApplyToken");
        assert_eq!(send(&to, &again).await.status, 200);
        assert_eq!(code(&send(&to, &again).await), (400, "SignatureNonceUsed".to_owned()));
    }
    let requests = stand.script.requests();
    assert_eq!(requests.len(), 8, "no more are passed on");
    for request in &requests {
        assert!(!request.contains("ops-1"), "tollgate signs with its own key: {request}");
        let is_whole =
            request.contains("Resources=Order1%2COrder2%2F%2A") || request.contains("Sn=1");
        assert!(is_whole, "{request}");
        assert_eq!(request.matches("SignatureNonce=").count(), 1, "{request}");
    }
    assert!(requests[0].contains("Action=ApplyToken&"), "{}", requests[0]);
    assert!(requests[1].contains("Action=CloseConnection&"), "{}", requests[1]);
}

/// The provider's answer as it is, but where it is about our key, or no SDK could read it.
#[tokio::test]
async fn answers_as_the_provider_gives_them() {
    let token = r#"{"Token":"LzMT+x/y==","RequestId":"AB-1"}"#;
    let says = [
        script::json(200, &[], token),
        script::error(400, "ParameterCheckFailed"),
        script::error(500, "InternalError"),
        script::error_with(400, "Throttling.User", &[("x-acs-retry-after", "1200")]),
        script::error(404, "InvalidAccessKeyId.NotFound"),
        script::error(403, "Forbidden.RAM"),
        Say::Bytes(script::http(200, "text/html", &[], "<html>a portal</html>")),
        Say::Bytes(script::http(502, "text/html", &[], "<html>bad gateway</html>")),
        Say::Close,
        Say::Hang,
    ];
    let script = Script::start(says).await;
    let timeouts = [("upstream.connect_timeout", "300ms"), ("upstream.call_timeout", "300ms")];
    let (_sidecar, to, telemetry) = with_actions(&script.url, r#"["ApplyToken"]"#, &timeouts).await;
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(send(&to, &call(BOTH[0], "ApplyToken")).await);
    }
    assert_eq!(answers[0].text(), token);
    assert_eq!(answers[0].header("x-acs-request-id"), "AB-1");
    let found: Vec<_> = answers.iter().map(code).collect();
    let wanted = [
        (200, ""),
        (400, "ParameterCheckFailed"),
        (500, "InternalError"),
        (400, "Throttling.User"),
        // The caller's own key is right.
        (503, "ServiceUnavailable"),
        (403, "Forbidden.RAM"),
        // It may have been done.
        (500, "InternalError"),
        (500, "InternalError"),
        (500, "InternalError"),
        (500, "InternalError"),
    ];
    assert_eq!(found, wanted.map(|(status, code)| (status, code.to_owned())));
    assert_eq!(answers[3].header("x-acs-retry-after"), "1200");
    let metrics = get(&telemetry, "/metrics").await.text();
    for (result, calls) in
        [("ok", 1.0), ("refused", 1.0), ("throttled", 1.0), ("failed", 3.0), ("unknown", 4.0)]
    {
        let name =
            format!("tollgate_action_calls_total{{action=\"ApplyToken\",result=\"{result}\"}}");
        assert!((series(&metrics, &name) - calls).abs() < 0.5, "{name} {metrics}");
    }
    // No message, and no money.
    assert!(series(&metrics, "tollgate_billable_messages_total").abs() < 0.5, "{metrics}");
    assert!(
        !metrics
            .contains("tollgate_uncertain_messages_total{instance=\"post-cn-test\",topic=\"+\"")
    );
}

/// Each operation has its own ceiling, and all calls together that of the address.
#[tokio::test]
async fn each_operation_has_its_own_ceiling() {
    let key = KeyPair { id: "testid".to_owned(), secret: "testsecret".to_owned(), token: None };
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = EmulatorOptions { listen, keys: vec![key], ..EmulatorOptions::default() };
    let emulator = Emulator::start(options).unwrap();
    let actions = r#"["RevokeToken", "ListGroupId=4", "QuerySessionByClientId"]"#;
    let limits = [("ceilings.egress_ip", "20"), ("sdk.wait", "6s")];
    let (sidecar, to, _) = with_actions(&emulator.url(), actions, &limits).await;
    let mut calls = tokio::task::JoinSet::new();
    for (action, times) in
        [("RevokeToken", 25), ("ListGroupId", 15), ("QuerySessionByClientId", 30)]
    {
        for _ in 0..times {
            let to = to.clone();
            calls.spawn(async move { (action, send(&to, &call(BOTH[1], action)).await) });
        }
    }
    let mut done = 0;
    for (action, answer) in calls.join_all().await {
        match code(&answer) {
            (200, _) => done += 1,
            (400, code) if code == "Throttling.User" => {
                let wait: u64 = answer.header("x-acs-retry-after").parse().unwrap();
                assert!(wait >= 1, "{action}");
            }
            other => panic!("{action}: {other:?} {}", answer.text()),
        }
    }
    let report = emulator.report();
    let worst = &report.worst_second_by_operation;
    assert!((1..=5).contains(&worst["RevokeToken"]), "{worst:?}");
    assert!((1..=4).contains(&worst["ListGroupId"]), "{worst:?}");
    assert!(worst["QuerySessionByClientId"] >= 1, "{worst:?}");
    assert!(report.worst_second <= 20, "{report:?}");
    assert_eq!((report.calls, report.refused.len()), (done, 0), "{report:?}");
    drop(sidecar);
}

/// A caller that hangs up loses the answer only. Its call has left, and its place is free again with the answer.
#[tokio::test]
async fn a_caller_that_hangs_up() {
    let answer = std::sync::Arc::new(tokio::sync::Notify::new());
    let script = Script::start([Say::Later(answer.clone())]).await;
    let (_sidecar, to, telemetry) = with_actions(&script.url, r#"["RevokeToken=1"]"#, &[]).await;
    let first = call(BOTH[0], "RevokeToken");
    {
        let gone = send(&to, &first);
        tokio::pin!(gone);
        tokio::select! {
            answer = &mut gone => panic!("{}", answer.text()),
            () = until("it has left", async || script.requests().len() == 1) => {}
        }
    }
    answer.notify_one();
    let ok = "tollgate_action_calls_total{action=\"RevokeToken\",result=\"ok\"}";
    until("it is answered", async || series(&get(&telemetry, "/metrics").await.text(), ok) > 0.5)
        .await;
    let next = send(&to, &call(BOTH[0], "RevokeToken")).await;
    assert_eq!(next.status, 200, "{}", next.text());
}

/// A call waits for its turn; one that waits when we stop is told so, and one under way has its answer.
#[tokio::test]
async fn calls_that_wait() {
    let answers = [(); 2].map(|()| std::sync::Arc::new(tokio::sync::Notify::new()));
    let says = [Say::Later(answers[0].clone()), script::ok(), Say::Later(answers[1].clone())];
    let script = Script::start(says).await;
    let (sidecar, to, telemetry) =
        with_actions(&script.url, r#"["RevokeToken=1"]"#, &[("sdk.wait", "9s")]).await;
    let left = async |calls: usize| {
        until("so many have left", async || script.requests().len() == calls).await;
    };
    let waits = async || {
        let name = "tollgate_action_waiting{action=\"RevokeToken\"}";
        until("one waits", async || series(&get(&telemetry, "/metrics").await.text(), name) > 0.5)
            .await;
    };
    let begins = || {
        let (to, call) = (to.clone(), call(BOTH[0], "RevokeToken"));
        tokio::spawn(async move { send(&to, &call).await })
    };
    let first = begins();
    left(1).await;
    let next = begins();
    waits().await;
    answers[0].notify_one();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(next.await.unwrap().status, 200);
    let under_way = begins();
    left(3).await;
    let last = begins();
    waits().await;
    let drained = sidecar.drain(std::future::ready(()));
    tokio::pin!(drained);
    let last = tokio::select! {
        last = last => last.unwrap(),
        _ = &mut drained => panic!("it waits for the call under way"),
    };
    assert_eq!(code(&last), (503, "ServiceUnavailable".to_owned()), "{}", last.text());
    answers[1].notify_one();
    let (under_way, _) = tokio::join!(under_way, drained);
    assert_eq!(under_way.unwrap().status, 200);
    assert_eq!(script.requests().len(), 3);
}

/// What is wrong in `sdk.actions` is said.
#[test]
fn what_may_be_listed() {
    let with = |actions: &str| {
        let flags = [("sdk.enabled", "true"), ("sdk.accept", "any"), ("sdk.actions", actions)];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let least = [("upstream.endpoint", "http://127.0.0.1:1"), ("upstream.instance_id", "x")];
        let least = least.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let flags: Vec<_> = least.into_iter().chain(flags).collect();
        tollgate::config::load(None, [], &flags)
    };
    for (actions, wanted) in [
        (r#"["SendMessage"]"#, "publishes"),
        (r#"["TagResources"]"#, "TagResources=10"),
        (r#"["ApplyToken=0"]"#, "calls a second"),
        (r#"["ApplyToken=-1"]"#, "calls a second"),
        (r#"["Apply Token"]"#, "name of an operation"),
        (r#"[""]"#, "name of an operation"),
        (r#"["ApplyToken", "ApplyToken=7"]"#, "twice"),
    ] {
        let error = with(actions).map(drop).unwrap_err().to_string();
        assert!(error.contains(wanted), "{actions}: {error}");
    }
    let actions = with(r#"["ApplyToken", "RevokeToken=7"]"#).unwrap().config.sdk.actions;
    let found: Vec<_> = actions.iter().map(|action| (&*action.name, action.ceiling)).collect();
    assert_eq!(found, [("ApplyToken", 100), ("RevokeToken", 7)]);
}
