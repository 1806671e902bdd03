//! Ceilings: throttling the account, blocking an address.

use tollgate::emulator::{EmulatorOptions, Over};

use crate::client::{Call, Client};
use crate::{options, start, within_a_second};

#[tokio::test]
async fn over_the_accounts_ceiling_calls_are_throttled() {
    let (emulator, mut client, answer) = within_a_second(async || {
        let (emulator, mut client) = start(EmulatorOptions { account_qps: 3, ..options() }).await;
        for _ in 0..3 {
            client.publish("TopicA", "x").await;
        }
        let answer = client.call(&Call::new("TopicA", "x")).await;
        (emulator, client, answer)
    })
    .await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "Throttling.User"));
    assert_eq!(answer.json()["Message"], "Request was denied due to user flow control.");
    let wait: u64 = answer.header("x-acs-retry-after").parse().unwrap();
    assert!((1..=1000).contains(&wait), "{wait} ms");

    // as long as it said, and there is room again
    tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
    client.publish("TopicA", "x").await;
    let report = emulator.report();
    assert_eq!((report.calls, report.accepted, report.worst_second), (5, 4, 4));
    assert_eq!(report.refused, [("Throttling.User".to_owned(), 1)].into());
}

#[tokio::test]
async fn or_the_system_overflows() {
    let answer = within_a_second(async || {
        let over = Over::SystemOverFlow;
        let (_emulator, mut client) =
            start(EmulatorOptions { account_qps: 1, over, ..options() }).await;
        client.publish("TopicA", "x").await;
        client.call(&Call::new("TopicA", "x")).await
    })
    .await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (500, "SystemOverFlow"));
    assert_eq!(answer.header("x-acs-retry-after"), "");
}

#[tokio::test]
async fn the_ceiling_comes_before_the_signature() {
    let (codes, worst) = within_a_second(async || {
        let (emulator, mut client) = start(EmulatorOptions { account_qps: 2, ..options() }).await;
        let mut codes = Vec::new();
        for path in ["/", "/nowhere", "/"] {
            codes.push(client.plain("POST", path, "").await.code());
        }
        (codes, emulator.report().worst_second)
    })
    .await;
    assert_eq!(codes, ["MissingParameter", "InvalidApi.NotFound", "Throttling.User"]);
    assert_eq!(worst, 3, "every call counts");
}

#[tokio::test]
async fn over_its_ceiling_an_address_is_blocked_until_reset() {
    let call = Call::new("TopicA", "x");
    let (emulator, mut waiting, fourth) = within_a_second(async || {
        let (emulator, mut client) = start(EmulatorOptions { egress_ip_qps: 3, ..options() }).await;
        let waiting = Client::connect(emulator.address()).await;
        for _ in 0..3 {
            client.publish("TopicA", "x").await;
        }
        let fourth = client.try_call(&call).await;
        (emulator, waiting, fourth)
    })
    .await;
    let address = emulator.address();
    assert!(fourth.is_err(), "the fourth gets no answer");
    assert!(waiting.try_call(&call).await.is_err(), "nor do connections that were there before");
    assert!(Client::connect(address).await.try_call(&call).await.is_err(), "nor new ones");
    assert_eq!(emulator.report().refused["blocked"], 3);
    assert_eq!(emulator.report().blocked, ["127.0.0.1".parse::<std::net::IpAddr>().unwrap()]);

    let mut elsewhere = Client::connect_from("127.0.0.2", address).await;
    elsewhere.publish("TopicA", "x").await;

    // whoever runs the emulator still gets in, and lets the address in again
    let mut admin = Client::connect(address).await;
    let report = admin.plain("GET", "/_emulator/report", "").await.json();
    assert_eq!(report["blocked"], serde_json::json!(["127.0.0.1"]));
    assert_eq!(report["worst_second_by_source"]["127.0.0.2"], 1);
    assert_eq!(admin.plain("POST", "/_emulator/reset", "").await.status, 200);
    admin.publish("TopicA", "x").await;
    assert_eq!(emulator.report().calls, 1);
}

#[tokio::test]
async fn a_block_can_be_lifted_alone() {
    let (emulator, second) = within_a_second(async || {
        let (emulator, mut client) = start(EmulatorOptions { egress_ip_qps: 1, ..options() }).await;
        client.publish("TopicA", "x").await;
        (emulator, client.try_call(&Call::new("TopicA", "x")).await)
    })
    .await;
    assert!(second.is_err());
    let mut admin = Client::connect(emulator.address()).await;
    assert_eq!(admin.plain("DELETE", "/_emulator/blocked", "").await.status, 200);
    let report = emulator.report();
    assert!(report.blocked.is_empty());
    assert_eq!((report.calls, report.accepted), (2, 1), "nothing else is forgotten");
}
