//! `POST /publish`: many messages in one request, an answer for each.

use crate::support;
use crate::support::http::{Answer, post};
use crate::support::script::{Script, error};
use crate::support::{config, sidecar};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
    assert!(told.iter().all(|line| line["status"] == 200 && line["Attempts"] == 1), "{told:?}");
    assert_eq!(told.len(), 2);

    let kept = publish(&address, &[("prefer", "respond-async")], all).await;
    assert_eq!(kept.status, 207, "the key was used: its first answer again: {}", kept.text());
    let told = lines(&kept);
    assert_eq!((&told[0]["status"], &told[0]["Status"]), (&202.into(), &"queued".into()));
    assert_eq!(told[1]["status"], 200);
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
        lines(&answer).iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 400, 403, 400, 400, 400, 400, 422, 400, 200]);
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
    let count = |status: u64| told.iter().filter(|line| line["status"] == status).count();
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
            let statuses: Vec<_> = told.iter().map(|l| l["status"].as_u64().unwrap()).collect();
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
        let statuses: Vec<_> = told.iter().map(|line| line["status"].as_u64().unwrap()).collect();
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
