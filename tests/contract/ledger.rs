//! The ledger against the provider's own count: exact while processes end in order, and never less
//! than the truth when they are killed.

use std::time::Duration;

use crate::support;
use crate::support::http::{get, post};
use crate::support::process::{Emulator, Serve, run};
use crate::support::until;
use rustix::process::Signal;
use serde_json::Value;

/// As many lines as one request may have.
const BATCH: usize = 1_000;

struct TestSidecar {
    _folder: tempfile::TempDir,
    emulator: Emulator,
    settings: Vec<(&'static str, String)>,
}

impl TestSidecar {
    async fn new(more: &[(&'static str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let limits = ["--egress-ip-qps", "0", "--account-qps", "0"];
        let emulator = Emulator::start(&limits).await;
        let mut settings = vec![
            ("upstream.endpoint", emulator.url()),
            ("spool.store", "disk".to_owned()),
            ("spool.path", folder.path().join("spool").display().to_string()),
            ("retry.base", "10ms".to_owned()),
            ("retry.cap", "200ms".to_owned()),
            // All are delivered in the end, however often a call ends without an answer.
            ("retry.unknown_tries", "1000".to_owned()),
            // Only a call that hangs ends without an answer, and before the grace of a stop does.
            ("upstream.call_timeout", "10s".to_owned()),
            ("upstream.connect_timeout", "10s".to_owned()),
        ];
        settings.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        Self { _folder: folder, emulator, settings }
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(key, value)| (*key, &**value)).collect()
    }

    async fn serve(&self) -> Serve {
        Serve::start(&self.settings(), &[]).await
    }

    async fn faults(&self, faults: &str) {
        let told = post(&self.emulator.address, "/_emulator/faults", &[], faults.as_bytes()).await;
        assert_eq!(told.status, 200, "{}", told.text());
    }

    async fn report(&self) -> Value {
        get(&self.emulator.address, "/_emulator/report").await.json()
    }

    /// Messages that the provider has taken, and calls of which nobody can know.
    async fn truth(&self) -> (u64, u64) {
        let report = self.report().await;
        let unknown = ["close", "hang", "empty-msgid", "html-503"];
        let unknown = unknown.iter().filter_map(|code| report["refused"][code].as_u64()).sum();
        (report["accepted"].as_u64().unwrap(), unknown)
    }

    /// The ledger's billable and uncertain messages.
    async fn bill(&self, more: &[&str]) -> Value {
        let mut args = vec!["bill", "--from", "2h", "-o", "json"];
        args.extend(more);
        let sets: Vec<_> =
            self.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let id = format!("upstream.instance_id={}", support::INSTANCE);
        for set in sets.iter().chain([&id]) {
            args.extend(["--set", set]);
        }
        let said = run(&args, &[]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        serde_json::from_str(&said.stdout).unwrap()
    }

    async fn counted(&self) -> (u64, u64) {
        sums(&self.bill(&[]).await)
    }

    async fn stop(&self, serve: Serve) {
        serve.signal(Signal::TERM);
        let (status, log) = serve.ended().await;
        assert!(status.success() && !log.contains("panicked"), "{log}");
    }
}

fn sums(bill: &Value) -> (u64, u64) {
    let rows = bill["rows"].as_array().unwrap();
    let sum = |name: &str| rows.iter().map(|row| row[name].as_u64().unwrap()).sum();
    (sum("messages"), sum("uncertain"))
}

/// Hands a batch over; all of it is stored, else the answer.
async fn publish(address: &str, batch: usize) -> Result<(), String> {
    let line = |n: usize| format!("{{\"topic\":\"Topic{}\",\"payload\":\"{batch}-{n}\"}}\n", n % 5);
    let body: String = (0..BATCH).map(line).collect();
    let headers = [("content-type", "application/x-ndjson"), ("prefer", "respond-async")];
    let answer = post(address, "/publish", &headers, body.as_bytes()).await;
    let text = answer.text();
    let other = text.lines().find(|line| !line.contains("\"httpStatus\":202"));
    if answer.status == 202 { Ok(()) } else { Err(format!("{}: {other:?}", answer.status)) }
}

async fn kept(serve: &Serve) -> u64 {
    get(&serve.telemetry, "/status.json").await.json()["kept"]["queued"].as_u64().unwrap()
}

async fn down_to(serve: &Serve, messages: u64) {
    let empty = async {
        while kept(serve).await > messages {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(5), empty).await.expect("they are delivered");
}

const FAULTS: &str = r#"[{"code":"SendMessageFailed","probability":0.05},
    {"code":"InternalError","probability":0.01},
    {"code":"SendMessageFailed","probability":0.01,"then":"close"},
    {"code":"SendMessageFailed","probability":0.01,"then":"empty-msgid"},
    {"code":"SendMessageFailed","probability":0.005,"then":"html-503"},
    {"code":"SendMessageFailed","probability":0.0005,"then":"hang"}]"#;

/// Two hundred thousand messages with faults of every kind, over a restart in the middle.
#[tokio::test]
async fn what_the_provider_bills() {
    const BATCHES: usize = 200;
    let sidecar =
        TestSidecar::new(&[("billing.price_per_million", "5"), ("ceilings.account", "none")]).await;
    sidecar.faults(FAULTS).await;
    let mut serve = sidecar.serve().await;
    for batch in 0..BATCHES {
        assert_eq!(publish(&serve.publish, batch).await, Ok(()), "batch {batch}");
        down_to(&serve, 20_000).await;
        if batch == BATCHES / 2 {
            sidecar.stop(serve).await;
            assert_eq!(sidecar.counted().await, sidecar.truth().await);
            serve = sidecar.serve().await;
        }
    }
    down_to(&serve, 0).await;
    // All messages are delivered; the last calls of which nobody knows are over, too.
    sidecar.stop(serve).await;
    let (accepted, unknown) = sidecar.truth().await;
    println!("{accepted} accepted, {unknown} unknown");
    assert!(accepted >= (BATCHES * BATCH) as u64 && unknown > 1_000);
    assert_eq!(sidecar.counted().await, (accepted, unknown));
    for by in ["hour", "topic", "instance"] {
        let bill = sidecar.bill(&["--by", by]).await;
        assert_eq!(sums(&bill), (accepted, unknown), "by {by}");
        let spend: f64 =
            bill["rows"].as_array().unwrap().iter().map(|r| r["spend"].as_f64().unwrap()).sum();
        assert!((spend - accepted as f64 * 5.0 / 1e6).abs() < 1e-9, "{spend}");
    }
    // A true second's peak is at least the mean, and no more than all.
    let rows = sidecar.bill(&["--by", "instance"]).await["rows"].clone();
    let peak = rows[0]["peak_tps"].as_u64().unwrap();
    let seconds = sidecar.report().await["by_second"].as_array().unwrap().len() as u64;
    assert!(peak >= accepted / (seconds + 1) && peak < accepted, "{peak} in {seconds} s");
}

/// Killed five times under load: never less than the truth, and more by what was under way.
#[tokio::test]
async fn killed_under_load() {
    const KILLS: u64 = 5;
    let sidecar = TestSidecar::new(&[]).await;
    sidecar.faults(FAULTS).await;
    let mut rng = fastrand::Rng::with_seed(20_261_123);
    let mut lost = 0;
    for kill in 0..KILLS {
        let serve = sidecar.serve().await;
        let (before, _) = sidecar.truth().await;
        for batch in 0..3 {
            drop(publish(&serve.publish, batch).await);
        }
        let some = rng.u64(500..2_000);
        until("enough is taken", async || sidecar.truth().await.0 >= before + some).await;
        serve.signal(Signal::KILL);
        serve.ended().await;
        let (billable, uncertain) = sidecar.counted().await;
        let (accepted, unknown) = sidecar.truth().await;
        println!("kill {kill}: {billable} + {uncertain}? of {accepted} and {unknown}?");
        assert!(billable <= accepted, "nothing is counted twice");
        assert!(accepted + unknown <= billable + uncertain, "nothing is forgotten");
        // A thousand calls may be under way, and as many again begin before the next write.
        lost = (billable + uncertain) - (accepted + unknown);
        assert!(lost <= (kill + 1) * 4_000, "{lost}");
    }
    // In order once more: the difference does not grow. It shrinks by what the provider decided after the
    // last process was dead and the truth was asked.
    let serve = sidecar.serve().await;
    down_to(&serve, 0).await;
    sidecar.stop(serve).await;
    let (billable, uncertain) = sidecar.counted().await;
    let (accepted, unknown) = sidecar.truth().await;
    assert!(billable <= accepted && accepted + unknown <= billable + uncertain);
    assert!((billable + uncertain) - (accepted + unknown) <= lost);
}

/// A process that dies in a quiet moment leaves nothing uncertain.
#[tokio::test]
async fn killed_while_idle() {
    let sidecar = TestSidecar::new(&[]).await;
    for _ in 0..3 {
        let serve = sidecar.serve().await;
        publish(&serve.publish, 0).await.unwrap();
        down_to(&serve, 0).await;
        // The room for calls that did not come is given back.
        let folder =
            sidecar.settings().iter().find(|(key, _)| *key == "spool.path").unwrap().1.to_owned();
        quiet(&serve, &folder).await;
        serve.signal(Signal::KILL);
        serve.ended().await;
    }
    assert_eq!(sidecar.counted().await, (3 * BATCH as u64, 0));
}

/// Waits until the ledger's files have not changed for a while, in which the sidecar has worked: one that
/// stands still is not quiet.
async fn quiet(serve: &Serve, folder: &str) {
    let stamp = || {
        let hot = std::fs::metadata(format!("{folder}/ledger/hot")).unwrap().modified().unwrap();
        let store = std::fs::metadata(format!("{folder}/ledger/ledger.redb")).unwrap();
        (hot, store.modified().unwrap())
    };
    let (mut last, mut same) = (stamp(), 0);
    until("the ledger's files stay as they are", async || {
        assert_eq!(get(&serve.telemetry, "/livez").await.status, 200);
        let now = stamp();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= 100
    })
    .await;
}

/// What may have been delivered before the connection closed is uncertain, and not billable.
#[tokio::test]
async fn delivered_and_then_closed() {
    let sidecar = TestSidecar::new(&[]).await;
    sidecar.faults(r#"[{"probability":0.2,"then":"deliver-then-close"}]"#).await;
    let serve = sidecar.serve().await;
    publish(&serve.publish, 0).await.unwrap();
    down_to(&serve, 0).await;
    sidecar.stop(serve).await;
    let ((billable, uncertain), (accepted, _)) = (sidecar.counted().await, sidecar.truth().await);
    assert_eq!(billable, BATCH as u64);
    assert_eq!(billable + uncertain, accepted);
    assert!(uncertain > 100, "{uncertain}");
}

/// A budget that refuses: what is over it is told when to come again, what is kept waits, and a
/// restart does not fill it up again.
#[tokio::test]
async fn a_budget() {
    let sidecar = TestSidecar::new(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tollgate.toml");
    let budget = |messages: u32| {
        format!(
            "[[billing.budgets]]\nname = \"alarms\"\nmessages = {messages}\nperiod = \"day\"\n\
             topics = [\"Alarm/*\"]\non_exceed = \"refuse\"\n"
        )
    };
    std::fs::write(&file, budget(3)).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let serve = Serve::start_with(&config, &sidecar.settings(), &[]).await;
    // A call that failed for certain costs nothing.
    sidecar.faults(r#"[{"code":"ParameterCheckFailed"}]"#).await;
    assert_eq!(post(&serve.publish, "/publish/Alarm/fire", &[], b"x").await.status, 422);
    sidecar.faults("[]").await;
    for n in 0..3 {
        assert_eq!(post(&serve.publish, "/publish/Alarm/fire", &[], b"x").await.status, 200, "{n}");
    }
    let refused = async |serve: &Serve, headers: &[(&str, &str)]| {
        let told = post(&serve.publish, "/publish/Alarm/fire", headers, b"x").await;
        assert_eq!(told.status, 429, "{}", told.text());
        let problem = told.json();
        assert_eq!(problem["type"], "urn:tollgate:budget");
        assert_eq!(problem["outcome"], "not-sent");
        let after: u64 = told.header("retry-after").parse().unwrap();
        assert!((1..=86_400).contains(&after), "{after}");
        assert_eq!(problem["retryable"], after <= 3_600, "{after}");
        assert!(told.header("ratelimit").starts_with("\"alarms\";r=0;t="), "{told:?}");
        assert!(told.header("ratelimit-policy").contains("\"alarms\";q="), "{told:?}");
    };
    refused(&serve, &[]).await;
    refused(&serve, &[("prefer", "respond-async")]).await;
    let line = b"{\"topic\":\"Alarm/fire\",\"payload\":\"x\"}\n";
    let kind = [("content-type", "application/x-ndjson")];
    let told = post(&serve.publish, "/publish", &kind, line).await;
    assert_eq!((told.status, &told.json()["type"]), (429, &"urn:tollgate:budget".into()));
    assert!(told.json()["retryAfter"].as_u64() >= Some(1));
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    let counted = |outcome: &str| {
        let name = "tollgate_publish_requests_total";
        support::http::series(&metrics, &format!("{name}{{topic=\"Alarm\",outcome=\"{outcome}\"}}"))
    };
    assert!((counted("over_budget") - 3.0).abs() < 0.5, "{metrics}");
    assert!(counted("over_ceiling").abs() < 0.5, "no ceiling is the reason");
    let answer = post(&serve.publish, "/publish/TopicA", &[], b"x").await;
    assert_eq!(answer.status, 200);
    assert!(!answer.header("ratelimit").contains("alarms"), "{answer:?}");
    let left = async |serve: &Serve| {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        support::http::series(&metrics, "tollgate_budget_remaining_ratio{budget=\"alarms\"}")
    };
    assert!(left(&serve).await.abs() < 1e-9);
    sidecar.stop(serve).await;

    // After a crash as after a restart.
    for signal in [Signal::TERM, Signal::KILL] {
        let serve = Serve::start_with(&config, &sidecar.settings(), &[]).await;
        refused(&serve, &[]).await;
        serve.signal(signal);
        serve.ended().await;
    }
    std::fs::write(&file, budget(4)).unwrap();
    let serve = Serve::start_with(&config, &sidecar.settings(), &[]).await;
    assert!((left(&serve).await - 0.25).abs() < 1e-9);
    assert_eq!(post(&serve.publish, "/publish/Alarm/fire", &[], b"x").await.status, 200);
    refused(&serve, &[]).await;
    assert_eq!(sidecar.truth().await.0, 5);
}

/// With it, the control socket is beside the spool.
const CONTROL: (&str, &str) = ("listen.control", "unix:/dev/null/x/control.sock");

/// What a person sees, of a running sidecar and of a stopped one.
#[tokio::test]
async fn a_bill() {
    let sidecar = TestSidecar::new(&[("billing.price_per_million", "250000"), CONTROL]).await;
    let serve = sidecar.serve().await;
    for _ in 0..4 {
        assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    }
    assert_eq!(post(&serve.publish, "/publish/Alarm/fire", &[], b"x").await.status, 200);
    // The same whether the sidecar is asked or its ledger is read.
    let running = sidecar.bill(&["--by", "topic"]).await;
    sidecar.stop(serve).await;
    let bill = sidecar.bill(&["--by", "topic"]).await;
    assert_eq!(running["rows"], bill["rows"]);
    let rows = bill["rows"].as_array().unwrap();
    let shown: Vec<_> = rows
        .iter()
        .map(|r| (r["topic"].as_str().unwrap(), r["messages"].as_u64().unwrap()))
        .collect();
    assert_eq!(shown, [("Alarm", 1), ("TopicA", 4)]);
    assert_eq!(rows[1]["spend"], 1.0);
    assert_eq!(bill["currency"], "CNY");
    let path =
        sidecar.settings().iter().find(|(key, _)| *key == "spool.path").unwrap().1.to_owned();
    let set = format!("spool.path={path}");
    let least =
        ["--set", &set, "--set", "upstream.endpoint=http://x", "--set", "upstream.instance_id=x"];
    let bill = async |args: &[&str]| {
        let args: Vec<_> = ["bill"].iter().chain(args).chain(&least).copied().collect();
        run(&args, &[]).await
    };
    let table = bill(&["--from", "1h"]).await;
    assert_eq!(table.code, 0, "{}", table.stderr);
    assert!(
        table.stdout.contains("TOTAL") && table.stdout.contains("No price is set"),
        "{}",
        table.stdout
    );
    let csv = bill(&["--from", "1h", "--by", "instance", "-o", "csv"]).await.stdout;
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines[0], "start,instance,topic,messages,uncertain,peak_tps,spend,currency");
    assert!(lines[1].starts_with(&format!(",{},,5,0,", support::INSTANCE)), "{csv}");
    assert!(table.stdout.lines().next().unwrap().ends_with("(Asia/Shanghai)"), "{}", table.stdout);
    let csv = bill(&["--from", "1h", "--by", "topic,month", "-o", "csv"]).await.stdout;
    let month = csv.lines().nth(2).unwrap();
    assert!(month.contains("-01T00:00:00+08:00,") && month.contains(",TopicA,4,0,"), "{csv}");
    let focus = bill(&["--from", "1h", "--by", "topic,day", "-o", "focus"]).await.stdout;
    assert!(focus.starts_with("BilledCost,BillingAccountId,"), "{focus}");
    assert!(focus.contains(&format!(",{0},{0},MQTT instance,", support::INSTANCE)), "{focus}");
    for (args, words) in [
        (&["--from", "yesterday"][..], "neither a day"),
        (&["--from", "2999-01-01"], "is not before"),
        (&["--by", "topic,caller"], "is not a period (hour, day, month)"),
        (&["--by", "day,day"], "is not a period"),
        (&["--by", ""], "is not a period"),
        (&["--by", "topic", "-o", "focus"], "needs a period"),
        (&["--by", "topic,day", "--against", "x"], "takes a period only"),
    ] {
        let wrong = bill(args).await;
        assert_eq!(wrong.code, 2, "wrong usage");
        assert!(wrong.stderr.contains(words), "{}", wrong.stderr);
    }
}

/// The total's peak is that of all topics together, and not of the largest one.
#[tokio::test]
async fn the_peak_of_all_topics() {
    let sidecar = TestSidecar::new(&[CONTROL]).await;
    let serve = sidecar.serve().await;
    for n in 0..60 {
        let topic = format!("/publish/Topic{}", n % 3);
        assert_eq!(post(&serve.publish, &topic, &[], b"x").await.status, 200);
    }
    for by in ["topic", "day", "instance", "topic,hour"] {
        let bill = sidecar.bill(&["--by", by]).await;
        let peak = |row: &Value| row["peak_tps"].as_u64().unwrap();
        let largest = bill["rows"].as_array().unwrap().iter().map(peak).max().unwrap();
        // All fall into two seconds at least, and into each of them messages of each topic.
        assert!((largest..=60).contains(&peak(&bill)), "{by}: {bill}");
        if by.starts_with("topic") {
            assert!(peak(&bill) > largest, "{by}: {bill}");
        }
        assert_eq!(bill["time_zone"], "Asia/Shanghai");
    }
    sidecar.stop(serve).await;
}

/// Beside what the provider counts.
#[tokio::test]
async fn a_bill_against_an_export() {
    let sidecar = TestSidecar::new(&[CONTROL]).await;
    let serve = sidecar.serve().await;
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    let now = jiff::Timestamp::now().in_tz("Asia/Shanghai").unwrap();
    let today = now.strftime("%Y-%m-%d").to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("export.csv").display().to_string();
    let against = async |rows: &str| {
        std::fs::write(&file, format!("time,instance,messages\n{rows}")).unwrap();
        let settings = sidecar.settings();
        let set: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let id = format!("upstream.instance_id={}", support::INSTANCE);
        let set = set.iter().chain([&id]).flat_map(|set| ["--set", set]);
        let args = ["bill", "-o", "json", "--against", &file].into_iter().chain(set);
        run(&args.collect::<Vec<_>>(), &[]).await
    };
    let instance = support::INSTANCE;
    let open = against(&format!("{today},{instance},1\n")).await;
    assert_eq!(open.code, 0, "{}", open.stderr);
    let both: Value = serde_json::from_str(&open.stdout).unwrap();
    let row = &both["rows"][0];
    assert_eq!((&row["provider"], &row["messages"]), (&1.into(), &1.into()), "{both}");
    assert_eq!(row["verdict"], "open", "{both}");
    let more = against(&format!("2026-01-01,{instance},7\n{today},{instance},1\n")).await;
    assert_eq!(more.code, 1, "{}", more.stdout);
    assert!(more.stderr.contains("does not explain 1 row"), "{}", more.stderr);
    let both: Value = serde_json::from_str(&more.stdout).unwrap();
    assert_eq!(both["rows"][0]["verdict"], "more", "{both}");
    // The whole day counts on both sides.
    let set: Vec<_> =
        sidecar.settings().iter().map(|(key, value)| format!("--set={key}={value}")).collect();
    let id = format!("--set=upstream.instance_id={instance}");
    std::fs::write(&file, format!("time,instance,messages\n{today},{instance},1\n")).unwrap();
    let noon = format!("{today}T23:59");
    let args = ["bill", "-o", "json", "--against", &file, "--from", &noon, &id];
    let args: Vec<_> = args.into_iter().chain(set.iter().map(String::as_str)).collect();
    let part = run(&args, &[]).await;
    let both: Value = serde_json::from_str(&part.stdout).unwrap();
    assert_eq!(both["rows"][0]["messages"], 1, "{both}");
    assert_eq!(both["rows"][0]["provider"], 1, "{both}");
    for (rows, words) in [("soon,a,1\n", "line 2: \"soon\""), ("", "no row")] {
        let wrong = against(rows).await;
        assert_eq!(wrong.code, 4, "{}", wrong.stdout);
        assert!(wrong.stderr.contains(words), "{}", wrong.stderr);
    }
    sidecar.stop(serve).await;
}

/// A ledger that cannot be read is set aside, and one that cannot be written is said to be so;
/// messages go on in either case.
#[tokio::test]
async fn a_bad_disk() {
    let sidecar = TestSidecar::new(&[]).await;
    let serve = sidecar.serve().await;
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    sidecar.stop(serve).await;
    let folder =
        sidecar.settings().iter().find(|(key, _)| *key == "spool.path").unwrap().1.to_owned();
    let store = format!("{folder}/ledger/ledger.redb");
    std::fs::write(&store, vec![7; 100_000]).unwrap();
    std::fs::write(format!("{folder}/ledger/hot"), "nonsense").unwrap();
    let serve = sidecar.serve().await;
    assert!(serve.log().contains("the ledger is damaged"), "{}", serve.log());
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    sidecar.stop(serve).await;
    assert_eq!(sidecar.counted().await, (1, 0));
    let kept = std::fs::read_dir(format!("{folder}/ledger")).unwrap();
    let kept = kept
        .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().contains("damaged"));
    assert_eq!(kept.count(), 1);
    // A folder where the store should be.
    std::fs::remove_file(&store).unwrap();
    std::fs::create_dir(&store).unwrap();
    let serve = sidecar.serve().await;
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    assert!(metrics.contains("tollgate_ledger_failing 1"), "{metrics}");
}
