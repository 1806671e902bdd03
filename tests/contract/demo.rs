//! The demo does what it prints.

use crate::support;
use crate::support::http::{BOUND, get, post};
use crate::support::process::Watched;

#[tokio::test]
async fn what_the_demo_prints_works() {
    let args =
        ["demo", "--publish", "127.0.0.1:0", "--telemetry", "127.0.0.1:0", "--traffic", "50"];
    let demo = Watched::start(&args, &[]);
    support::until("two lines of what became of the traffic", async || {
        demo.said().lines().any(|line| line.trim_start().starts_with("2 "))
    })
    .await;
    let text = demo.said();
    let address = |start: &str| {
        let rest = text.split_once(start).unwrap_or_else(|| panic!("{start} in\n{text}")).1;
        rest.split(['/', '\n']).next().unwrap().to_owned()
    };
    let publish = address("curl -d hello http://");
    let answer = post(&publish, "/publish/TopicA", &[], b"hello").await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(answer.json()["MsgId"].as_str().unwrap().len(), 32);

    let page = get(&address("look      http://"), "/").await;
    assert!(page.text().contains("<title>tollgate</title>"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    // As fast as this machine is.
    support::until("fifty are billed", async || {
        let status = get(&address("look      http://"), "/status.json").await.json();
        status["billable"].as_u64().unwrap() >= 50
    })
    .await;
    let metrics = get(&address("metrics   curl http://"), "/metrics").await.text();
    assert!(metrics.contains("tollgate_publish_requests_total{"));
    let messages = get(&address("provider  curl http://"), "/_emulator/messages").await.text();
    assert!(messages.lines().count() >= 50, "{messages}");

    let provider = address("provider  curl http://");
    let fault = async |faults: &[u8]| {
        assert_eq!(post(&provider, "/_emulator/faults", &[], faults).await.status, 200);
    };
    fault(br#"[{"code":"SendMessageFailed","for":"1h"}]"#).await;
    // Kept meanwhile, and delivered when that is over.
    let kept = post(&publish, "/publish/TopicA", &[], b"hello").await;
    assert_eq!(kept.status, 202);
    let receipt = async || get(&publish, kept.header("location")).await.json();
    let told = receipt().await;
    assert_eq!((&told["Id"], told["Status"].as_str()), (&kept.json()["Id"], Some("queued")));
    fault(b"[]").await;
    support::until("it is delivered", async || receipt().await["Status"] == "delivered").await;
}

/// The numbers of a line that begins with this word, in order.
fn numbers(text: &str, word: &str) -> Vec<f64> {
    let line = text.lines().find(|line| line.trim_start().starts_with(word));
    let line = line.unwrap_or_else(|| panic!("{word} in\n{text}"));
    let words = line.split(|c: char| !(c.is_ascii_digit() || c == '.'));
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Its standard input is closed, as that of each process here: it is not read.
#[tokio::test]
async fn the_story_has_its_parts_and_totals_that_agree() {
    let at = "127.0.0.1:0";
    let args = ["demo", "--story", "--story-pace", "0.1", "--publish", at, "--telemetry", at];
    let mut demo = Watched::start(&args, &[]);
    let status = demo.ended(BOUND * 6).await;
    let text = demo.said();
    assert_eq!(status.code(), Some(0), "{text}");
    let mut rest = &*text;
    let mut parts = Vec::new();
    for part in
        ["1/5  Calm.", "2/5  Outage.", "3/5  Recovery.", "4/5  One topic fails", "5/5  Totals."]
    {
        let (before, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part} in\n{text}"));
        parts.push(before);
        rest = after;
    }
    let [_, calm, outage, recovery, one_topic] = parts[..] else { panic!("five parts") };
    assert!(!calm.contains("failed"), "{calm}");
    let outage: Vec<_> = outage.lines().filter(|line| line.contains("callers: ")).collect();
    let last = outage.last().unwrap();
    assert!(last.contains("callers: 0/s delivered") && !last.contains(" 0/s stored"), "{last}");
    assert!(last.contains("backlog "), "{last}");
    let recovered = recovery.lines().rfind(|line| line.contains("callers: ")).unwrap();
    let (_, backlog) = recovered.split_once("backlog ").unwrap();
    assert!(backlog.split(',').next().unwrap().parse::<u64>().unwrap() < 10, "{recovered}");
    assert!(one_topic.contains("It works again"), "{one_topic}");

    let callers = numbers(rest, "callers ");
    let [published, delivered, _, stored, _, refused, failed] = callers[..] else {
        panic!("{callers:?}");
    };
    let answered = delivered + stored + refused + failed;
    assert!((published - answered).abs() < 0.5, "{rest}");
    assert!(delivered > 0.0 && stored > 0.0, "{rest}");
    let [accepted, twice, not_accepted] = numbers(rest, "provider ")[..] else { panic!("{rest}") };
    // A call without an answer, on a busy machine, may have delivered.
    assert!((delivered + stored..=published).contains(&(accepted - twice)), "{rest}");
    assert!(not_accepted > 0.0, "{rest}");
    let tollgate = numbers(rest, "tollgate ");
    assert!((tollgate[0]..=tollgate[0] + tollgate[1]).contains(&accepted), "{rest}");
    assert!(rest.contains("They agree"), "{rest}");
}
