//! `POST /publish`: many messages in one request, an answer for each.

use std::sync::Arc;

use crate::support;
use crate::support::http::{Answer, BOUND, parse, post};
use crate::support::script::{Say, Script, error, ok};
use crate::support::{config, sidecar, until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

const KIND: (&str, &str) = ("content-type", "application/x-ndjson");

async fn publish(address: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers = [&[KIND], headers].concat();
    post(address, "/publish", &headers, body.as_bytes()).await
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn each_line_has_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([]).await;
    let spool = folder.path().display().to_string();
    let flags = [("spool.store", "disk"), ("spool.path", &*spool), ("topics.allow", "TopicA*")];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;

    let all = "{\"topic\":\"TopicA\",\"payload\":\"one\"}\n\
               {\"topic\":\"TopicA/sub\",\"payloadBase64\":\"AP8=\",\"key\":\"k\"}\r\n\n";
    let answer = publish(&address, &[], all).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, KIND.1));
    let told = lines(&answer);
    assert!(told.iter().all(|line| line["httpStatus"] == 200 && line["Attempts"] == 1), "{told:?}");
    assert_eq!(told.len(), 2);

    let kept = publish(&address, &[("prefer", "respond-async")], all).await;
    assert_eq!(kept.status, 207, "the key was used: its first answer again: {}", kept.text());
    let told = lines(&kept);
    assert_eq!((&told[0]["httpStatus"], &told[0]["Status"]), (&202.into(), &"queued".into()));
    assert_eq!(told[1]["httpStatus"], 200);
    assert_eq!(kept.header("preference-applied"), "respond-async");

    let mixed = "{\"topic\":\"TopicA\",\"payload\":\"x\"}\n\
                 {\"topic\":\"a\",\"payload\":\"x\"}\n\
                 {\"topic\":\"Other\",\"payload\":\"x\"}\n\
                 {\"topic\":\"TopicA\"}\n\
                 {\"topic\":\"TopicA\",\"payload\":\"x\",\"payloadBase64\":\"\"}\n\
                 {\"topic\":\"TopicA\",\"payloadBase64\":\"%\"}\n\
                 {\"topic\":\"TopicA\",\"payload\":\"x\",\"qos\":1}\n\
                 {\"topic\":\"TopicA/sub\",\"payload\":\"other\",\"key\":\"k\"}\n\
                 not json\n\
                 {\"topic\":\"TopicA\",\"payload\":\"y\"}";
    let answer = publish(&address, &[], mixed).await;
    assert_eq!(answer.status, 207);
    let statuses: Vec<_> =
        lines(&answer).iter().map(|line| line["httpStatus"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 400, 403, 400, 400, 400, 400, 422, 400, 200]);
}

/// A result says what a request of its own would say, in its body and in its headers.
#[tokio::test]
async fn a_result_has_what_the_message_would_get_alone() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([]).await;
    let spool = folder.path().display().to_string();
    let flags = [("spool.store", "disk"), ("spool.path", &*spool), ("topics.allow", "TopicA*")];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let body = "\n{\"topic\":\"TopicA\",\"payload\":\"1\",\"key\":\"k1\"}\r\n\r\n   \n\
                {\"topic\":\"Other\",\"payload\":\"2\",\"key\":\"k2\"}\n\
                {\"topic\":\"TopicA\",\"payload\":\"3\"}\n\n\
                {\"topic\":\"TopicA\",\"key\":\"k4\"}\n\
                [\"TopicA\",\"5\",null,\"k5\"]\n\
                {\"topic\":\"TopicA\",\"payload\":\"other\",\"key\":\"k1\"}\n";
    let told = lines(&publish(&address, &[], body).await);
    let at = |name: &str| -> Vec<_> { told.iter().map(|line| line[name].clone()).collect() };
    assert_eq!(at("line"), [2, 5, 6, 8, 9, 10]);
    assert_eq!(at("httpStatus"), [200, 403, 200, 400, 400, 422]);
    assert_eq!(
        at("key"),
        ["k1".into(), "k2".into(), Value::Null, "k4".into(), Value::Null, "k1".into()]
    );
    assert_eq!((&told[0]["MsgId"], &told[0]["Attempts"]), (&told[2]["MsgId"], &1.into()));
    assert_eq!(told[1]["type"], "urn:tollgate:forbidden-topic");
    assert_eq!(told[1]["outcome"], "not-sent");
    assert_eq!(told[4]["type"], "urn:tollgate:malformed-line");
    // Decoders that ignore case find each member once.
    for line in &told {
        let members = line.as_object().unwrap();
        let names: std::collections::BTreeSet<_> =
            members.keys().map(|name| name.to_ascii_lowercase()).collect();
        assert_eq!(names.len(), members.len(), "{line}");
        assert!(!members.contains_key("status"), "{line}");
    }
    // What headers say alone: the first answer again, and where a kept message is found.
    let again = publish(&address, &[("prefer", "respond-async")], &keyed("1", "k1")).await;
    assert_eq!(lines(&again)[0]["replayed"], true);
    let kept = publish(&address, &[("prefer", "respond-async")], &keyed("6", "k6")).await;
    let kept = &lines(&kept)[0];
    assert_eq!(kept["location"], format!("/messages/{}", kept["Id"].as_str().unwrap()));
    assert_eq!((&kept["Status"], &kept["replayed"]), (&"queued".into(), &Value::Null));
}

/// A request of which nothing is accepted is no success.
#[tokio::test]
async fn nothing_accepted_is_no_success() {
    let script = Script::start([]).await;
    let flags = [("topics.allow", "TopicA*"), ("ceilings.account", "1"), ("publish.wait", "1ms")];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let bad = "{\"topic\":\"a\",\"payload\":\"x\"}\n";
    let forbidden = "{\"topic\":\"Other\",\"payload\":\"x\"}\n";
    for (body, status) in [
        (bad.to_owned(), 400),
        (bad.repeat(3), 400),
        ("[1]\n".to_owned(), 400),
        (forbidden.to_owned(), 403),
        (format!("{bad}{forbidden}"), 422),
    ] {
        let answer = publish(&address, &[], &body).await;
        assert_eq!((answer.status, answer.header("content-type")), (status, KIND.1), "{body}");
        assert_eq!(lines(&answer).len(), body.lines().count());
    }
    assert!(script.requests().is_empty());
    // The ceiling's one permit is gone with the first of these.
    let good = "{\"topic\":\"TopicA\",\"payload\":\"x\"}\n";
    assert_eq!(publish(&address, &[("prefer", "wait=20")], good).await.status, 200);
    let over = publish(&address, &[], &good.repeat(2)).await;
    assert_eq!(over.status, 429, "{}", over.text());
    assert!(over.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert!(lines(&over).iter().all(|line| line["retryAfter"].as_u64() >= Some(1)));
}

/// One key for all lines is a mistake, and the answer says where a key belongs.
#[tokio::test]
async fn a_key_of_the_whole_request() {
    let script = Script::start([]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    for key in ["\"k\"", "k", ""] {
        let answer = publish(&address, &[("idempotency-key", key)], &keyed("x", "k")).await;
        assert_eq!(answer.status, 400, "{key}");
        assert_eq!(answer.json()["type"], "urn:tollgate:batch-key");
        assert!(answer.json()["detail"].as_str().unwrap().contains("\"key\""));
    }
    assert!(script.requests().is_empty());
}

/// Where the client asks for it, a result comes as soon as it and those before it are known.
#[tokio::test]
async fn results_stream() {
    let release = Arc::new(Notify::new());
    let script = Script::start([ok(), Say::Later(Arc::clone(&release)), ok()]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    let body = |key: &str| format!("{{\"topic\":\"a\",\"payload\":\"0\"}}\n{}", keyed("1", key));
    let head = |preference: &str, length: usize| {
        format!(
            "POST /publish HTTP/1.1\r\nhost: localhost\r\ncontent-type: {}\r\nprefer: {preference}\r\n\
             content-length: {length}\r\n\r\n",
            KIND.1
        )
    };
    let (first, second) = (body("one"), body("two"));
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let read = async |stream: &mut TcpStream, end: &str| {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(end) {
            let n = timeout(BOUND, stream.read_buf(&mut text)).await.expect(end).unwrap();
            assert!(n > 0, "{end}: {:?}", String::from_utf8_lossy(&text));
        }
        String::from_utf8(text).unwrap()
    };
    // First alone, so that the script's next answer, which is held, is for a known line.
    stream.write_all(format!("{}{first}", head("stream", first.len())).as_bytes()).await.unwrap();
    let first = read(&mut stream, "0\r\n\r\n").await;
    assert!(first.starts_with("HTTP/1.1 207"), "{first}");
    let answer = parse(first.as_bytes()).unwrap();
    assert_eq!(answer.header("preference-applied"), "stream");
    assert_eq!(
        lines(&answer).iter().map(|l| l["httpStatus"].clone()).collect::<Vec<_>>(),
        [400, 200]
    );
    assert_eq!(lines(&answer)[1]["key"], "one");
    // The first line's result is there while the second's call is held.
    stream
        .write_all(format!("{}{second}", head("wait=60, stream", second.len())).as_bytes())
        .await
        .unwrap();
    let begun = read(&mut stream, "malformed-topic").await;
    assert!(begun.contains("preference-applied: wait=60, stream"), "{begun}");
    assert!(!begun.contains("MsgId"), "{begun}");
    until("it is called", async || script.requests().len() == 2).await;
    release.notify_one();
    let rest = read(&mut stream, "0\r\n\r\n").await;
    assert!(rest.contains("\"line\":2"), "{rest}");
    // The connection lives on.
    let one = "{\"topic\":\"TopicA\",\"payload\":\"3\"}";
    stream.write_all(format!("{}{one}", head("wait=60", one.len())).as_bytes()).await.unwrap();
    assert!(read(&mut stream, "MsgId").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_is_no_batch() {
    let script = Script::start([]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    let line = "{\"topic\":\"TopicA\",\"payload\":\"x\"}\n";
    for (body, status) in
        [("", 400), ("\n \n", 400), (&*line.repeat(1_001), 413), (&*"x".repeat((8 << 20) + 1), 413)]
    {
        let answer = publish(&address, &[], body).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    let answer = post(&address, "/publish", &[("content-type", "text/plain")], b"x").await;
    assert_eq!(answer.status, 415);
    let answer = support::http::get(&address, "/publish").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "POST"));
    assert!(script.requests().is_empty());
}

/// A thousand at once, a few of which fail: each answer stands at its line.
#[tokio::test]
async fn a_thousand() {
    let script = Script::start((0..20).map(|_| error(400, "ParameterCheckFailed"))).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    let body: Vec<_> =
        (0..1_000).map(|n| format!("{{\"topic\":\"TopicA\",\"payload\":\"{n}\"}}")).collect();
    let answer = publish(&address, &[("prefer", "wait=20")], &body.join("\n")).await;
    assert_eq!(answer.status, 207);
    let told = lines(&answer);
    let count = |status: u64| told.iter().filter(|line| line["httpStatus"] == status).count();
    assert_eq!((told.len(), count(200), count(422)), (1_000, 980, 20));
}

/// A line of a request, with its key.
fn keyed(payload: &str, key: &str) -> String {
    format!("{{\"topic\":\"TopicA\",\"payload\":\"{payload}\",\"key\":\"{key}\"}}\n")
}

/// Of two lines with one key the first counts, however often it is tried and wherever they stand. Many
/// threads take turns, as in a sidecar that serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_of_two_lines_with_one_key_wins() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let kept = [("spool.store", "disk"), ("spool.path", &*path)];
    for flags in [&[][..], &kept[..]] {
        let (_sidecar, address, _) = sidecar(&config(&script.url, flags)).await;
        for turn in 0..60 {
            let name = |what: &str| format!("{what}-{}-{turn}", flags.len());
            let [a, b, c] = ["a", "b", "c"].map(name);
            // A malformed line takes no key, and one without a key stands between.
            let body = [
                "{\"topic\":\"TopicA\",\"key\":\"KEY\"}\n".replace("KEY", &c),
                keyed("first", &a),
                keyed("second", &a),
                keyed("first", &b),
                "{\"topic\":\"TopicA\",\"payload\":\"none\"}\n".to_owned(),
                keyed("second", &b),
                keyed("third", &b),
                keyed("only", &c),
                keyed("late", &c),
            ];
            let answer = publish(&address, &[], &body.concat()).await;
            let told = lines(&answer);
            let statuses: Vec<_> = told.iter().map(|l| l["httpStatus"].as_u64().unwrap()).collect();
            assert_eq!(statuses, [400, 200, 422, 200, 200, 422, 422, 200, 422], "turn {turn}");
        }
    }
}

/// The same where the first line is only kept, and for the same words twice: the second line is the first
/// request's repetition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_repeats_one_that_is_kept() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let flags = [("spool.store", "disk"), ("spool.path", &*path)];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    for turn in 0..60 {
        let [a, b] = ["a", "b"].map(|key| format!("{key}-{turn}"));
        let body = [keyed("x", &a), keyed("other", &a), keyed("y", &b), keyed("y", &b)];
        let answer = publish(&address, &[("prefer", "respond-async")], &body.concat()).await;
        let told = lines(&answer);
        let statuses: Vec<_> =
            told.iter().map(|line| line["httpStatus"].as_u64().unwrap()).collect();
        assert_eq!(statuses[..3], [202, 422, 202], "turn {turn}: {told:?}");
        // Its repetition meets it under way, or gets its answer again.
        let repeated = statuses[3] == 202 && told[3]["Id"] == told[2]["Id"];
        assert!(statuses[3] == 409 || repeated, "turn {turn}: {told:?}");
    }
}

/// Lines without a key wait for their permits in their order: the provider sees them so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_wait_in_their_order() {
    let mut waiting = Vec::new();
    for _ in 0..12 {
        waiting.push(tokio::spawn(async {
            let script = Script::start([]).await;
            let flags = [("ceilings.account", "1"), ("upstream.payload", "plain")];
            let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
            let line = |n| format!("{{\"topic\":\"TopicA\",\"payload\":\"line-{n}-\"}}\n");
            let body: String = (0..4).map(line).collect();
            let answer = publish(&address, &[], &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let order = |request: &String| {
                (0..4).find(|n| request.contains(&format!("line-{n}-"))).unwrap()
            };
            script.requests().iter().map(order).collect::<Vec<_>>()
        }));
    }
    let mut arrived = Vec::new();
    for order in waiting {
        arrived.push(order.await.unwrap());
    }
    assert!(arrived.iter().all(|order| order == &[0, 1, 2, 3]), "{arrived:?}");
}

/// So many requests are read at once, since each may be large; one more is told to come again.
#[tokio::test]
async fn too_many_at_once() {
    const AT_ONCE: usize = 16;
    let script = Script::start([]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    let line = "{\"topic\":\"TopicA\",\"payload\":\"one\"}";
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: localhost\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
        KIND.1,
        line.len()
    );
    let mut open = Vec::new();
    for _ in 0..AT_ONCE {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        open.push(stream);
    }
    // Until all of them are being read.
    let refused = loop {
        let answer = publish(&address, &[], line).await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    assert_eq!(refused.json()["type"], "urn:tollgate:full");
    for mut stream in open {
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
    }
    assert_eq!(publish(&address, &[], line).await.status, 200);
}

/// Also those that are stored first, and those of the same topic behind them.
#[tokio::test]
async fn calls_of_a_topic_begin_in_line_order() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([]).await;
    let spool = folder.path().display().to_string();
    // Far enough apart that connections cannot reorder them.
    let flags = [("spool.store", "disk"), ("spool.path", &*spool), ("ceilings.account", "50")];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    for (name, key) in [("keyed", "key"), ("mixed", "key"), ("plain", ""), ("stored", "")] {
        let before = script.requests().len();
        let line = |n: usize| {
            let keyed = !key.is_empty() && (name == "keyed" || n.is_multiple_of(3));
            let key = if keyed { format!(",\"key\":\"{name}-{n}\"") } else { String::new() };
            let topic = if n.is_multiple_of(2) { "TopicA" } else { "TopicB/sub" };
            format!("{{\"topic\":\"{topic}\",\"payload\":\"{name}-{n:02}\"{key}}}\n")
        };
        let body: String = (0..30).map(line).collect();
        let prefer = if name == "stored" { "respond-async" } else { "wait=30" };
        let answer = publish(&address, &[("prefer", prefer)], &body).await;
        assert!([200, 202].contains(&answer.status), "{name}: {}", answer.text());
        until("all calls", async || script.requests().len() == before + 30).await;
        let calls = script.requests().split_off(before);
        for parent in ["TopicA", "TopicB"] {
            let of_topic: Vec<_> = calls.iter().filter(|call| call.contains(parent)).collect();
            let numbers: Vec<_> = of_topic.iter().map(|call| number(call, name)).collect();
            assert!(numbers.len() == 15 && numbers.is_sorted(), "{name}, {parent}: {numbers:?}");
        }
    }
}

/// Of the line whose call this is.
fn number(call: &str, name: &str) -> usize {
    let all = 0..30;
    let encoded = |n: &usize| {
        let text = STANDARD.encode(format!("{name}-{n:02}"));
        text.trim_end_matches('=').to_owned()
    };
    all.into_iter().find(|n| call.contains(&encoded(n))).unwrap_or_else(|| panic!("{call}"))
}
