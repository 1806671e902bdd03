//! The demo does what it prints.

use crate::support;
use crate::support::http::{get, post};
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
