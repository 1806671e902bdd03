//! Every upstream answer of the table, from the bytes on the wire to the caller's status, body and
//! the metrics.
#![allow(clippy::too_many_lines, clippy::float_cmp, reason = "tables are long, counts are whole")]

use crate::support;
use crate::support::http::{get, post, series};
use crate::support::script::{Say, Script, error, error_with, http, json, ok};
use crate::support::{INSTANCE, config, sidecar};

/// What one answer of the upstream must become.
struct Case {
    name: &'static str,
    says: Vec<Say>,
    /// Status, type, outcome, retryable, attempts.
    caller: (u16, &'static str, &'static str, bool, u64),
    /// The label of calls, and how many have it.
    code: (&'static str, f64),
    published: &'static str,
    uncertain: f64,
}

fn case(
    name: &'static str,
    say: Say,
    times: usize,
    caller: (u16, &'static str, &'static str, bool),
    code: &'static str,
    published: &'static str,
) -> Case {
    Case {
        name,
        says: vec![say; times],
        caller: (caller.0, caller.1, caller.2, caller.3, times as u64),
        code: (code, times as f64),
        published,
        uncertain: if caller.1 == "unknown" { 1.0 } else { 0.0 },
    }
}

const FAILED: (u16, &str, &str, bool) = (502, "failed", "refused", true);
const REFUSED: (u16, &str, &str, bool) = (422, "refused", "refused", false);
const BARRED: (u16, &str, &str, bool) = (502, "barred", "refused", true);
const THROTTLED: (u16, &str, &str, bool) = (429, "throttled", "refused", true);
const UNKNOWN: (u16, &str, &str, bool) = (504, "unknown", "unknown", true);

/// A code that is refused as it is, tried once.
fn once(status: u16, code: &'static str, caller: (u16, &'static str, &'static str, bool)) -> Case {
    let published = match caller.0 {
        422 => "refused",
        504 => "unknown",
        _ => "failed",
    };
    case(code, error(status, code), 1, caller, code, published)
}

fn cases() -> Vec<Case> {
    let html = |status| Say::Bytes(http(status, "text/html", &[], "<html>no</html>"));
    let throttled =
        |status, code| case(code, error(status, code), 3, THROTTLED, code, "over_ceiling");
    let failed =
        |status, code: &'static str| case(code, error(status, code), 3, FAILED, code, "failed");
    let in_a_while = [("x-acs-retry-after", "60000")];
    vec![
        // The nine of the reference page.
        failed(500, "SendMessageFailed"),
        failed(500, "InternalError"),
        throttled(500, "SystemOverFlow"),
        once(400, "ParameterCheckFailed", REFUSED),
        once(400, "InvalidParameter.Topic", REFUSED),
        once(400, "CheckAccountInfoFailed", BARRED),
        once(400, "PermissionCheckFailed", BARRED),
        once(400, "InstancePermissionCheckFailed", BARRED),
        once(404, "ApiNotSupport", BARRED),
        // Throttling.
        throttled(400, "Throttling"),
        throttled(400, "Throttling.User"),
        throttled(429, "Throttling.Api"),
        throttled(400, "Rejected.Throttling"),
        case("bare 429", html(429), 3, THROTTLED, "http_429", "over_ceiling"),
        // Any answer with a retry-after is throttling; one that is too long is not waited for.
        case(
            "ServiceUnavailable with retry-after",
            error_with(400, "ServiceUnavailable", &in_a_while),
            1,
            THROTTLED,
            "ServiceUnavailable",
            "over_ceiling",
        ),
        case(
            "odd retry-after is none",
            error_with(400, "ParameterCheckFailed", &[("x-acs-retry-after", "-5")]),
            1,
            REFUSED,
            "ParameterCheckFailed",
            "refused",
        ),
        // Signature, key, token, clock, nonce.
        once(400, "SignatureDoesNotMatch", BARRED),
        once(403, "SignatureDoesNotMatch", BARRED),
        once(400, "IncompleteSignature", BARRED),
        once(400, "InvalidSignatureMethod", BARRED),
        once(404, "InvalidAccessKeyId.NotFound", BARRED),
        once(400, "InvalidAccessKeyId.Inactive", BARRED),
        once(400, "InvalidSecurityToken.Expired", BARRED),
        once(400, "InvalidSecurityToken.Malformed", BARRED),
        once(400, "InvalidSecurityToken.MismatchWithAccessKey", BARRED),
        once(400, "MissingSecurityToken", BARRED),
        once(400, "SignatureNonceUsed", UNKNOWN),
        case(
            "InvalidTimeStamp.Expired, twice",
            error(400, "InvalidTimeStamp.Expired"),
            2,
            BARRED,
            "InvalidTimeStamp.Expired",
            "failed",
        ),
        case(
            "IllegalTimestamp",
            error(400, "IllegalTimestamp"),
            2,
            BARRED,
            "IllegalTimestamp",
            "failed",
        ),
        // The common layer.
        once(400, "MissingParameter", REFUSED),
        once(400, "MissingParameter.InstanceId", REFUSED),
        once(400, "InvalidParameter.Format", REFUSED),
        once(403, "Forbidden.RAM", BARRED),
        once(400, "UnsupportedHTTPMethod", BARRED),
        once(404, "InvalidApi.NotFound", BARRED),
        once(404, "InvalidProtocol.NeedSsl", BARRED),
        failed(503, "ServiceUnavailable"),
        failed(500, "UnknownError"),
        // A code twice, as a lenient reader takes it.
        case(
            "code twice",
            json(400, &[], r#"{"Code":"Throttling.User","code":"Throttling.User"}"#),
            3,
            THROTTLED,
            "Throttling.User",
            "over_ceiling",
        ),
        // Codes nobody has seen.
        once(400, "SomethingNew", REFUSED),
        failed(500, "SomethingNewer"),
        // Not the provider's words.
        case("html 503", html(503), 1, UNKNOWN, "http_503", "unknown"),
        case("html 500", html(500), 1, UNKNOWN, "http_500", "unknown"),
        case("html 502", html(502), 1, UNKNOWN, "http_502", "unknown"),
        case("html 504", html(504), 1, UNKNOWN, "http_504", "unknown"),
        case("html 404", html(404), 1, BARRED, "http_404", "failed"),
        case("html 403", html(403), 1, BARRED, "http_403", "failed"),
        case("html 413", html(413), 1, REFUSED, "http_413", "refused"),
        case("redirect", html(307), 1, BARRED, "http_307", "failed"),
        case(
            "retry-after without JSON",
            Say::Bytes(http(503, "text/html", &[("x-acs-retry-after", "60000")], "x")),
            1,
            THROTTLED,
            "http_503",
            "over_ceiling",
        ),
        // Standard Retry-After: the same, but where a gateway may have passed the call on.
        case(
            "429 with Retry-After",
            Say::Bytes(http(429, "text/html", &[("retry-after", "60")], "x")),
            1,
            THROTTLED,
            "http_429",
            "over_ceiling",
        ),
        case(
            "ServiceUnavailable with Retry-After as a date",
            error_with(
                503,
                "ServiceUnavailable",
                &[
                    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                    ("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT"),
                ],
            ),
            1,
            THROTTLED,
            "ServiceUnavailable",
            "over_ceiling",
        ),
        case(
            "Retry-After that has passed is none",
            error_with(
                400,
                "ParameterCheckFailed",
                &[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")],
            ),
            1,
            REFUSED,
            "ParameterCheckFailed",
            "refused",
        ),
        case(
            "html 503 with Retry-After",
            Say::Bytes(http(503, "text/html", &[("retry-after", "60")], "x")),
            1,
            UNKNOWN,
            "http_503",
            "unknown",
        ),
        // Errors that leave a doubt, whatever they ask for.
        case(
            "html 504 with x-acs-retry-after",
            Say::Bytes(http(504, "text/html", &in_a_while, "x")),
            1,
            UNKNOWN,
            "http_504",
            "unknown",
        ),
        case(
            "SignatureNonceUsed with x-acs-retry-after",
            error_with(400, "SignatureNonceUsed", &in_a_while),
            1,
            UNKNOWN,
            "SignatureNonceUsed",
            "unknown",
        ),
        case(
            "compressed 400",
            json(400, &[("content-encoding", "gzip")], "x"),
            1,
            UNKNOWN,
            "http_400",
            "unknown",
        ),
        case("303", html(303), 1, UNKNOWN, "http_303", "unknown"),
        // Success that is none.
        case(
            "compressed 200",
            json(200, &[("content-encoding", "gzip")], r#"{"MsgId":"M-1"}"#),
            1,
            UNKNOWN,
            "empty_msgid",
            "unknown",
        ),
        case(
            "204",
            Say::Bytes(b"HTTP/1.1 204 X\r\n\r\n".to_vec()),
            1,
            UNKNOWN,
            "empty_msgid",
            "unknown",
        ),
        case(
            "blank MsgId",
            json(200, &[], r#"{"MsgId":" \u0000","RequestId":"REQ-1"}"#),
            1,
            UNKNOWN,
            "empty_msgid",
            "unknown",
        ),
        case(
            "empty MsgId",
            json(200, &[], r#"{"MsgId":"","RequestId":"REQ-1"}"#),
            1,
            UNKNOWN,
            "empty_msgid",
            "unknown",
        ),
        case(
            "no MsgId",
            json(200, &[], r#"{"RequestId":"REQ-1"}"#),
            1,
            UNKNOWN,
            "empty_msgid",
            "unknown",
        ),
        case("200 that is not JSON", html(200), 1, UNKNOWN, "empty_msgid", "unknown"),
        case(
            "200 of a wrong shape",
            json(200, &[], r#"{"MsgId":7}"#),
            1,
            UNKNOWN,
            "empty_msgid",
            "unknown",
        ),
        // Transport, after bytes were written.
        case("closed", Say::Close, 1, UNKNOWN, "closed", "unknown"),
        case("no answer", Say::Hang, 1, UNKNOWN, "timeout", "unknown"),
        case(
            "not HTTP",
            Say::BytesAndClose(b"SSH-2.0-x\r\n\r\n".to_vec()),
            1,
            UNKNOWN,
            "garbled",
            "unknown",
        ),
        case(
            "half an answer",
            Say::BytesAndClose(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"Msg".to_vec()),
            1,
            UNKNOWN,
            "closed",
            "unknown",
        ),
        case(
            "an endless answer",
            Say::BytesAndClose(http(200, "text/plain", &[], &"x".repeat(100_000))),
            1,
            UNKNOWN,
            "garbled",
            "unknown",
        ),
    ]
}

#[tokio::test]
async fn every_answer_becomes_what_the_contract_says() {
    for case in cases() {
        let name = case.name;
        let script = Script::start(case.says).await;
        // Only who gets no answer has to wait for none, and long enough for a connection before.
        let bound = if name == "no answer" { "3s" } else { "20s" };
        let flags = [("upstream.call_timeout", bound), ("upstream.connect_timeout", bound)];
        let config = config(&script.url, &flags);
        let (_sidecar, publish, telemetry) = sidecar(&config).await;
        let answer =
            post(&publish, "/publish/TopicA/x", &[("x-request-id", "me-1")], b"hello").await;

        let (status, kind, outcome, retryable, attempts) = case.caller;
        let problem = answer.json();
        assert_eq!(answer.status, status, "{name}: {problem}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{name}");
        assert_eq!(answer.header("x-request-id"), "me-1", "{name}");
        assert_eq!(problem["type"], format!("urn:tollgate:{kind}"), "{name}");
        assert_eq!(problem["status"], status, "{name}");
        assert_eq!(problem["outcome"], outcome, "{name}");
        assert_eq!(problem["retryable"], retryable, "{name}");
        assert_eq!(problem["attempts"], attempts, "{name}: {problem}");
        assert_eq!(!answer.header("retry-after").is_empty(), status == 429, "{name}");
        assert_eq!(script.requests().len() as u64, attempts, "{name}");

        let metrics = get(&telemetry, "/metrics").await.text();
        let (code, calls) = case.code;
        let called: f64 = ["first", "retry"]
            .iter()
            .map(|kind| {
                let name =
                    format!("tollgate_upstream_calls_total{{kind=\"{kind}\",code=\"{code}\"}}");
                series(&metrics, &name)
            })
            .sum();
        assert_eq!(called, calls, "{name}: calls with code {code}\n{metrics}");
        let published = format!(
            "tollgate_publish_requests_total{{topic=\"TopicA\",outcome=\"{}\"}}",
            case.published
        );
        assert_eq!(series(&metrics, &published), 1.0, "{name}: {published}");
        let labels = format!("{{instance=\"{INSTANCE}\",topic=\"TopicA\"}}");
        let uncertain = series(&metrics, &format!("tollgate_uncertain_messages_total{labels}"));
        assert_eq!(uncertain, case.uncertain, "{name}: uncertain");
        let billable = series(&metrics, &format!("tollgate_billable_messages_total{labels}"));
        assert_eq!(billable, 0.0, "{name}: nothing was delivered");
    }
}

/// `retry.codes` decides before `x-acs-retry-after`, and that before the table.
#[tokio::test]
async fn the_configuration_rules_over_the_header() {
    // Of the table: throttled, failed, refused, barred; and one that it does not know.
    const CODES: [(u16, &str); 5] = [
        (400, "Throttling.User"),
        (500, "SendMessageFailed"),
        (400, "ParameterCheckFailed"),
        (403, "Forbidden.RAM"),
        (500, "Odd.Code"),
    ];
    const IN_A_MINUTE: &[(&str, &str)] = &[("x-acs-retry-after", "60000")];
    // What a rule makes of a code: the answer, calls without the header and with it, and the wait.
    let rules = [
        ("retry", FAILED, [3, 3], ["", ""]),
        ("throttled", THROTTLED, [3, 1], ["1", "60"]),
        ("unknown", UNKNOWN, [1, 1], ["", ""]),
        ("refused", REFUSED, [1, 1], ["", ""]),
    ];
    for (status, code) in CODES {
        for (means, caller, calls, waits) in rules {
            for (with, headers) in [&[], IN_A_MINUTE].into_iter().enumerate() {
                let name = format!("{code} = {means}, {headers:?}");
                let says = vec![error_with(status, code, headers); calls[with]];
                let rule = format!("{{ {code} = \"{means}\" }}");
                let config = |script: &Script| config(&script.url, &[("retry.codes", &rule)]);
                let script = Script::start(says).await;
                let (_sidecar, publish, _) = sidecar(&config(&script)).await;
                let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
                let problem = answer.json();
                assert_eq!(answer.status, caller.0, "{name}: {problem}");
                assert_eq!(problem["type"], format!("urn:tollgate:{}", caller.1), "{name}");
                assert_eq!(problem["outcome"], caller.2, "{name}");
                assert_eq!(problem["retryable"], caller.3, "{name}");
                assert_eq!(script.requests().len(), calls[with], "{name}: {problem}");
                assert_eq!(answer.header("retry-after"), waits[with], "{name}");
            }
        }
    }
    // What is not ruled is as ever, and a success is one whatever its code.
    let rule = [("retry.codes", "{ Other = \"refused\", Odd.Code = \"refused\" }")];
    let success = r#"{"Code":"Odd.Code","MsgId":"M","RequestId":"R"}"#;
    for (say, status) in [
        (error_with(400, "ParameterCheckFailed", IN_A_MINUTE), 429),
        (error(403, "Forbidden.RAM"), 502),
        (json(200, IN_A_MINUTE, success), 200),
    ] {
        let script = Script::start([say]).await;
        let (_sidecar, publish, _) = sidecar(&config(&script.url, &rule)).await;
        let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
        assert_eq!(answer.status, status, "{}", answer.json());
    }
}

#[tokio::test]
async fn a_delivered_message_has_a_receipt_and_is_billed() {
    let script = Script::start([]).await;
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
    let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
    assert_eq!(answer.status, 200, "{:?}", answer.json());
    assert_eq!(
        answer.json(),
        serde_json::json!({
            "MsgId": "0B736D997B7F45FF54E61C1C1B580000", "RequestId": "REQ-OK", "Attempts": 1
        })
    );
    assert!(!answer.header("x-request-id").is_empty());
    let metrics = get(&telemetry, "/metrics").await.text();
    for (name, value) in [
        ("tollgate_upstream_calls_total{kind=\"first\",code=\"OK\"}".to_owned(), 1.0),
        ("tollgate_publish_requests_total{topic=\"TopicA\",outcome=\"delivered\"}".to_owned(), 1.0),
        (
            format!("tollgate_billable_messages_total{{instance=\"{INSTANCE}\",topic=\"TopicA\"}}"),
            1.0,
        ),
        (
            format!(
                "tollgate_uncertain_messages_total{{instance=\"{INSTANCE}\",topic=\"TopicA\"}}"
            ),
            0.0,
        ),
    ] {
        assert_eq!(series(&metrics, &name), value, "{name}");
    }
}

/// What tells success is the `MsgId`; a number for a code, as some answers have, does not matter.
#[tokio::test]
async fn a_success_with_a_numeric_code_is_a_success() {
    let said = json(200, &[], r#"{"Code":200,"MsgId":"M-1","RequestId":"R","Extra":{"a":[1]}}"#);
    let script = Script::start([said]).await;
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &[])).await;
    let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
    assert_eq!((answer.status, &answer.json()["MsgId"]), (200, &"M-1".into()));
}

/// Every call asks for an answer as it is, and a byte order mark before one hides nothing.
#[tokio::test]
async fn a_success_after_a_byte_order_mark_is_a_success() {
    let said = json(200, &[], "\u{feff}{\"MsgId\":\"M-1\",\"RequestId\":\"R\"}");
    let script = Script::start([said]).await;
    for version in ["hmac-sha1", "acs3-hmac-sha256"] {
        let flags = [("upstream.signature", version)];
        let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
        let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
        assert_eq!((answer.status, &answer.json()["Attempts"]), (200, &1.into()));
    }
    for request in script.requests() {
        assert!(request.contains("accept-encoding: identity\r\n"), "{request}");
    }
}

/// A code or an id that is made to act on a terminal, or to fill a log, is shown cut and harmless.
#[tokio::test]
async fn codes_and_ids_are_cleaned() {
    // Twice in an answer of at most 64 KiB.
    let long = "c".repeat(32_000);
    let cut = format!("{}…", "c".repeat(127));
    for (code, shown) in [
        (r"Odd\u001b[31m", "Odd\u{fffd}[31m"),
        (r"Odd\u202eedoC", "Odd\u{fffd}edoC"),
        (r"Odd\u009b2J\r\n", "Odd\u{fffd}2J\u{fffd}\u{fffd}"),
        (&long, &cut),
    ] {
        let body = format!(r#"{{"Code":"{code}","RequestId":"{code}"}}"#);
        let script = Script::start([json(400, &[], &body)]).await;
        let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
        let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
        let problem = answer.json();
        assert_eq!((answer.status, &problem["upstream"]["Code"]), (422, &shown.into()));
        assert_eq!(problem["upstream"]["RequestId"], shown);
        assert!(problem["detail"].as_str().unwrap().contains(shown), "{problem}");
        let metrics = get(&telemetry, "/metrics").await.text();
        let other = "tollgate_upstream_calls_total{kind=\"first\",code=\"other\"}";
        assert_eq!(series(&metrics, other), 1.0, "{metrics}");
        assert!(!get(&telemetry, "/status.json").await.text().contains(['\u{1b}', '\u{202e}']));
    }
    let script =
        Script::start([json(200, &[], r#"{"MsgId":"M\u202e1","RequestId":"R\u0007"}"#)]).await;
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &[])).await;
    let receipt = post(&publish, "/publish/TopicA", &[], b"x").await.json();
    assert_eq!(
        (&receipt["MsgId"], &receipt["RequestId"]),
        (&"M\u{fffd}1".into(), &"R\u{fffd}".into())
    );
}

/// The wait ends before a connection is ready: nothing was sent, and nothing is sent afterwards.
#[tokio::test]
async fn what_has_not_left_in_time_stays() {
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let script = Script::start([Say::Later(told.clone())]).await;
    let flags = [("upstream.max_connections", "1")];
    let (sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let first = tokio::spawn({
        let publish = publish.clone();
        async move { post(&publish, "/publish/TopicA", &[("prefer", "wait=60")], b"x").await }
    });
    while script.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    // The only connection is taken until this caller has given up.
    let answer = post(&publish, "/publish/TopicA", &[("prefer", "wait=1")], b"x").await;
    let problem = answer.json();
    assert_eq!((answer.status, &problem["outcome"]), (504, &"not-sent".into()), "{problem}");
    assert_eq!(problem["type"], "urn:tollgate:timeout");
    told.notify_one();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(sidecar.drain(std::future::pending()).await.unanswered, 0);
    assert_eq!(script.requests().len(), 1, "the second call never left");
    drop(telemetry);
}

/// Who hangs up is counted all the same, and who only ends its side gets its answer.
#[tokio::test]
async fn hang_ups_and_half_closes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let says = [Say::Later(told.clone()), Say::Later(told.clone())];
    let script = Script::start(says).await;
    let (sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
    let request = b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx";
    let send = async |half: bool| {
        let mut stream = tokio::net::TcpStream::connect(&publish).await.unwrap();
        stream.write_all(request).await.unwrap();
        if half {
            stream.shutdown().await.unwrap();
        }
        stream
    };
    let gone = send(false).await;
    let mut half = send(true).await;
    while script.requests().len() < 2 {
        tokio::task::yield_now().await;
    }
    drop(gone);
    told.notify_one();
    told.notify_one();
    let mut answer = Vec::new();
    let read = half.read_to_end(&mut answer);
    tokio::time::timeout(support::http::BOUND, read).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    told.notify_one();
    let delivered = "tollgate_publish_requests_total{topic=\"TopicA\",outcome=\"delivered\"}";
    let counted = async {
        while series(&get(&telemetry, "/metrics").await.text(), delivered) < 2.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::http::BOUND, counted).await.expect("both are counted");
    assert_eq!(sidecar.drain(std::future::pending()).await.unanswered, 0);
}

/// Where it is safe, a failed call is tried again at once: the caller sees one success.
#[tokio::test]
async fn what_passes_at_a_later_try_is_a_success() {
    let soon = [("x-acs-retry-after", "10")];
    for (says, attempts) in [
        (vec![error(500, "SendMessageFailed")], 2),
        (vec![error(500, "InternalError"), error(503, "ServiceUnavailable")], 3),
        (vec![error(500, "SystemOverFlow")], 2),
        (vec![error_with(400, "Throttling.User", &soon)], 2),
    ] {
        let script = Script::start(says).await;
        let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
        let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["Attempts"], attempts);
        let metrics = get(&telemetry, "/metrics").await.text();
        let billable =
            format!("tollgate_billable_messages_total{{instance=\"{INSTANCE}\",topic=\"TopicA\"}}");
        assert_eq!(series(&metrics, &billable), 1.0);
        // Every try has a nonce of its own.
        let nonces: std::collections::BTreeSet<_> = script
            .requests()
            .iter()
            .map(|request| {
                request
                    .split("SignatureNonce=")
                    .nth(1)
                    .unwrap()
                    .split('&')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(nonces.len(), attempts);
        assert!(nonces.iter().all(|nonce| nonce.len() == 32));
    }
}

fn http_date(ahead: jiff::SignedDuration) -> String {
    let at = jiff::Timestamp::now() + ahead;
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap()
}

/// How far the time of a signed request is ahead of our clock.
fn signed_ahead(request: &str) -> jiff::SignedDuration {
    let at = request.split("Timestamp=").nth(1).unwrap().split('&').next().unwrap();
    let at: jiff::Timestamp = at.replace("%3A", ":").parse().unwrap();
    at.duration_since(jiff::Timestamp::now())
}

/// Two answers that agree on the provider's time set ours right, and the message goes through. Answers
/// that do not agree, or whose `Date` cannot be, change nothing.
#[tokio::test]
async fn a_wrong_clock_is_corrected_by_answers_that_agree() {
    let minutes = jiff::SignedDuration::from_mins;
    let refused = |date: &str| error_with(400, "InvalidTimeStamp.Expired", &[("date", date)]);
    let far = "Fri, 31 Dec 9999 23:59:59 GMT".to_owned();
    let past = "Thu, 01 Jan 1970 00:00:00 GMT".to_owned();
    for (dates, status, calls, ahead) in [
        ([http_date(minutes(16)), http_date(minutes(16))], 200, 3, minutes(16)),
        ([http_date(minutes(-16)), http_date(minutes(-16))], 200, 3, minutes(-16)),
        ([http_date(minutes(16)), http_date(minutes(-16))], 502, 2, minutes(0)),
        ([http_date(minutes(40)), http_date(minutes(40))], 502, 2, minutes(0)),
        ([far.clone(), far], 502, 2, minutes(0)),
        ([past.clone(), past], 502, 2, minutes(0)),
    ] {
        let script = Script::start(dates.iter().map(|date| refused(date))).await;
        let (_sidecar, publish, _) = sidecar(&config(&script.url, &[])).await;
        let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
        assert_eq!((answer.status, script.requests().len()), (status, calls), "{dates:?}");
        // One more call, if the last was refused.
        post(&publish, "/publish/TopicA", &[], b"hello").await;
        let times: Vec<_> = script.requests().iter().map(|request| signed_ahead(request)).collect();
        let near = |one: jiff::SignedDuration, other| (one - other).abs() < minutes(5);
        assert!(times[..2].iter().all(|time| near(*time, minutes(0))), "{times:?}");
        assert!(times[2..].iter().all(|time| near(*time, ahead)), "{dates:?}: {times:?}");
    }
}

/// The provider refuses our time once, and its `Date` is far off: the call is made again, and the
/// difference is shown.
#[tokio::test]
async fn a_clock_that_is_off_is_shown() {
    let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(40);
    let date =
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&ahead).unwrap();
    let says = [error_with(400, "InvalidTimeStamp.Expired", &[("date", &date)]), ok()];
    let script = Script::start(says).await;
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
    let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
    assert_eq!((answer.status, answer.json()["Attempts"].as_u64()), (200, Some(2)));
    let metrics = get(&telemetry, "/metrics").await.text();
    let skew = series(&metrics, "tollgate_clock_skew_seconds");
    assert!((2_395.0..=2_405.0).contains(&skew), "{skew}");
}

#[tokio::test]
async fn nothing_listens_at_the_endpoint() {
    let (_nobody, refusing) = support::ports::refusing();
    for (endpoint, code) in [
        (format!("http://{refusing}"), "connect"),
        ("http://nowhere.invalid".to_owned(), "resolve"),
    ] {
        // A machine whose resolver asks nobody in vain three times is still within the caller's wait.
        let flags = [("upstream.connect_timeout", "5s")];
        let (_sidecar, publish, telemetry) = sidecar(&config(&endpoint, &flags)).await;
        let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
        let problem = answer.json();
        assert_eq!(
            (answer.status, problem["outcome"].as_str()),
            (502, Some("not-sent")),
            "{problem}"
        );
        assert_eq!(problem["attempts"], 3);
        let metrics = get(&telemetry, "/metrics").await.text();
        let calls = format!("tollgate_upstream_calls_total{{kind=\"retry\",code=\"{code}\"}}");
        assert_eq!(series(&metrics, &calls), 2.0);
        let ready = get(&telemetry, "/readyz").await;
        assert_eq!(ready.status, 200, "an outage of the upstream is nobody's unreadiness");
    }
}

/// A caller whose patience ends while the call is on its way.
#[tokio::test]
async fn a_late_answer_is_counted_though_its_caller_has_gone() {
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let script = Script::start([Say::Later(told.clone())]).await;
    let (sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
    let answer = post(&publish, "/publish/TopicA", &[("prefer", "wait=3")], b"hello").await;
    let problem = answer.json();
    assert_eq!((answer.status, problem["outcome"].as_str()), (504, Some("unknown")), "{problem}");
    assert_eq!(answer.header("preference-applied"), "wait=3");
    let counted = async |what: &str| {
        let labels = format!("{{instance=\"{INSTANCE}\",topic=\"TopicA\"}}");
        let metrics = get(&telemetry, "/metrics").await.text();
        series(&metrics, &format!("tollgate_{what}_messages_total{labels}"))
    };
    assert_eq!(counted("uncertain").await, 0.0, "nobody knows yet");
    told.notify_one();
    support::until("it is counted", async || counted("billable").await > 0.5).await;
    assert_eq!(counted("uncertain").await, 0.0);
    assert_eq!(sidecar.drain(std::future::pending()).await.unanswered, 0, "and it ends by itself");
}
