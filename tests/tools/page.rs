//! What a person sees in a browser, in each state that tollgate can be in.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support;
use crate::support::browser::Page;
use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Serve, run};
use crate::support::redis::Redis;
use crate::support::stage::Stage;
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Messages at an even pace until it is dropped.
struct Traffic {
    per_second: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Traffic {
    fn start(address: &str, per_second: u64) -> Self {
        let (address, rate) = (address.to_owned(), Arc::new(AtomicU64::new(per_second)));
        let per_second = Arc::clone(&rate);
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(50));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut due = 0.0;
            loop {
                ticks.tick().await;
                due += rate.load(Ordering::Relaxed) as f64 / 20.0;
                while due >= 1.0 {
                    due -= 1.0;
                    let address = address.clone();
                    let headers = [("prefer", "wait=1")];
                    tokio::spawn(async move {
                        post(&address, "/publish/TopicA/x", &headers, b"x").await
                    });
                }
            }
        });
        Self { per_second, task: task.abort_handle() }
    }

    fn set(&self, per_second: u64) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Says what somebody would find hard to read.
const FLAWS: &str = include_str!("../fixtures/flaws.js");

/// Looks at the page as it is now in both schemes and on a phone, and keeps pictures if asked to.
async fn look(page: &Page, state: &str) {
    for (name, dark, width) in [
        ("light", false, 1280),
        ("dark", true, 1280),
        ("phone", false, 360),
        ("phone-dark", true, 360),
    ] {
        page.look(dark, width).await;
        let flaws = page.eval(FLAWS).await;
        assert_eq!(flaws, json!([]), "{state}, {name}");
        if std::env::var_os("TOLLGATE_SHOTS").is_some() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page-shots");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("{state}-{name}.png")), page.shot().await).unwrap();
        }
    }
    page.look(false, 1280).await;
}

/// Nothing from elsewhere, no complaint but these, and no breach of the page's policy.
async fn is_clean(page: &Page, origin: &str, but: &[&str]) {
    let requests = page.requests();
    assert!(requests.len() > 8, "{requests:?}");
    for url in requests {
        assert!(url.starts_with(&format!("http://{origin}/")) || url == "about:blank", "{url}");
    }
    let complaints = page.complaints();
    let expected = |complaint: &String| but.iter().any(|words| complaint.contains(words));
    let others: Vec<_> = complaints.iter().filter(|c| !expected(c)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(page.eval("violations").await, json!([]));
}

/// The figure that an element shows.
async fn figure(page: &Page, id: &str) -> f64 {
    page.text(id).await.replace(',', "").parse().unwrap_or(-1.0)
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.02 * b.abs()
}

async fn fault(emulator: &Emulator, faults: &str) {
    let answer = post(&emulator.address, "/_emulator/faults", &[], faults.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

const DELIVERED: &str = "tollgate_publish_requests_total{topic=\"TopicA\",outcome=\"delivered\"}";
const TPS: &str = "tollgate_billable_tps{instance=\"post-cn-test0001\"}";
/// What the outcomes' table says was delivered.
const TOTAL: &str = "Number([...document.querySelectorAll('#outcomes tr')].find(row => \
                     row.innerText.includes('Delivered')).cells[2].textContent.replaceAll(',', ''))";

/// All that was billed but for the second that is not over, of which the ceiling is a bound; and
/// only what is new to those who have the rest.
async fn has_a_history(origin: &str) {
    let status = get(origin, "/status.json").await.json();
    let history = status["history"]["billable"].as_array().unwrap();
    let sum: u64 = history.iter().map(|count| count.as_u64().unwrap()).sum();
    let billable = status["billable"].as_u64().unwrap();
    assert!(
        billable > 300 && sum <= billable + 101 && billable <= sum + 101,
        "{sum} of {billable}"
    );
    let before = status["history"]["end"].as_i64().unwrap() - 1;
    let newer = get(origin, &format!("/status.json?since={before}")).await.json();
    let newer = newer["history"]["billable"].as_array().unwrap().len();
    assert!((1..history.len()).contains(&newer), "{newer} of {}", history.len());
}

/// Waits for words that may take longer than a browser's answer: a problem that has come back is held for longer
/// each time, and leases last half a minute.
async fn comes(page: &Page, id: &str, words: &str) {
    let end = tokio::time::Instant::now() + support::http::BOUND * 4;
    let text = format!("document.getElementById('{id}').innerText");
    loop {
        let text = page.eval(&text).await;
        if text.as_str().is_some_and(|text| text.contains(words)) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{words} does not come: {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The provider fails each call for a while.
async fn fails_and_recovers(page: &Page, emulator: &Emulator, origin: &str, traffic: &Traffic) {
    fault(emulator, r#"[{"code":"SendMessageFailed"}]"#).await;
    page.says("concerns", "Delivery fails for TopicA").await;
    page.says("paused", "TopicA").await;
    page.says("errors", "SendMessageFailed").await;
    page.until("document.getElementById('queued').innerText.replace(',', '') > 50").await;
    assert_eq!(page.eval("document.getElementById('state').dataset.level").await, "bad");
    // Nothing is delivered, all is stored, and no end of it is promised.
    page.says("outlook", "not shrinking").await;
    page.until("document.querySelector('#legend [data-line=stored] b').textContent > 0").await;
    page.until("document.querySelector('#legend [data-line=backlog] b').textContent > 50").await;
    let said = run(&["status", "--at", origin], &[]).await.stdout;
    for words in
        ["PROBLEM  Delivery fails for TopicA, began ", "not shrinking", " stored", "backlog "]
    {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    page.says("concerns", "PROBLEM Delivery fails for TopicA began ").await;
    look(page, "4-outage").await;
    fault(emulator, "[]").await;
    traffic.set(20);
    // It is empty within seconds, so there may be no estimate of when: `telemetry::backlog` has tests of that.
    page.until("document.getElementById('queued').innerText < 50").await;
    look(page, "4b-recovery").await;
    comes(page, "headline", "No problems").await;
    traffic.set(50);
}

/// What the chart's legend says of the last second.
const CHARTED: &str = "document.querySelector('#legend [data-line=delivered] b').textContent";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_state_of_a_sidecar() {
    let emulator = Emulator::start(&[]).await;
    let (url, folder) = (emulator.url(), tempfile::tempdir().unwrap());
    let spool = folder.path().display().to_string();
    let settings = |telemetry: String| {
        [
            ("listen.telemetry", telemetry),
            ("upstream.endpoint", url.clone()),
            // A call that takes long on a busy machine is no doubt about its outcome.
            ("upstream.call_timeout", "20s".to_owned()),
            ("ceilings.account", "100".to_owned()),
            ("ceilings.egress_ip", "150".to_owned()),
            ("spool.store", "disk".to_owned()),
            ("spool.path", spool.clone()),
        ]
    };
    let serve = |telemetry: String| async {
        let settings = settings(telemetry);
        Serve::start(&settings.each_ref().map(|(key, value)| (*key, &**value)), &[]).await
    };
    let sidecar = serve("127.0.0.1:0".to_owned()).await;
    let origin = sidecar.telemetry.clone();
    let page = Page::open().await;
    page.go(&format!("http://{origin}/")).await;

    // Idle.
    page.says("headline", "No problems").await;
    page.says("outcomes-empty", "No request yet").await;
    page.says("chart-words", "No message since the start").await;
    page.says("accepted-of", "no request").await;
    assert_eq!(page.text("tps").await, "0");
    // Which sidecar it is.
    page.says("instances", "instance post-cn-test0001").await;
    let name = page.text("sidecar").await;
    assert_eq!(get(&origin, "/status.json").await.json()["name"], name.as_str());
    assert!(page.eval("document.title").await.as_str().unwrap().ends_with(&name), "{name}");
    // The chart begins with the sidecar, not with fifteen empty minutes.
    page.says("chart-title", "since the start").await;
    look(&page, "1-idle").await;

    // Busy: the figures are those of the metrics.
    let traffic = Traffic::start(&sidecar.publish, 50);
    page.says("outcomes", "Delivered").await;
    let end = tokio::time::Instant::now() + support::http::BOUND;
    loop {
        let before = get(&origin, "/metrics").await.text();
        let polls = page.requests().len();
        support::until("two more polls", async || page.requests().len() >= polls + 2).await;
        let (tps, total) = (figure(&page, "tps").await, page.eval(TOTAL).await.as_f64().unwrap());
        let after = get(&origin, "/metrics").await.text();
        let (least, most) = (series(&before, DELIVERED), series(&after, DELIVERED));
        assert!(least * 0.98 <= total && total <= most * 1.02, "{least} <= {total} <= {most}");
        let gauges = [series(&before, TPS), series(&after, TPS)];
        if total > 100.0 && tps > 20.0 && gauges.iter().any(|gauge| near(tps, *gauge)) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{tps} messages/s on the page, {gauges:?}");
    }
    page.says("headline", "No problems").await;
    page.says("topics", "TopicA").await;
    // The chart's last second is the big number's.
    page.until(&format!("{CHARTED} === document.getElementById('tps').textContent")).await;
    // A start lets nothing through for a second.
    page.until("parseFloat(document.getElementById('accepted').innerText) > 80").await;
    page.says("latency", "p50 ").await;
    page.says("outlook", "empty").await;
    look(&page, "2-busy").await;

    // More than the ceiling lets through.
    traffic.set(300);
    page.says("concerns", "At the account's ceiling").await;
    page.says("outcomes", "Over a ceiling").await;
    page.until("document.getElementById('use-bar').ariaValueNow >= 95").await;
    page.says("not-accepted", "refused").await;
    page.until("document.querySelector('#legend [data-line=refused] b').textContent > 0").await;
    look(&page, "3-saturated").await;
    traffic.set(50);
    comes(&page, "headline", "No problems").await;
    has_a_history(&origin).await;

    fails_and_recovers(&page, &emulator, &origin, &traffic).await;

    // The provider denies access.
    fault(&emulator, r#"[{"code":"SignatureDoesNotMatch"}]"#).await;
    page.says("concerns", "The provider rejects the access key").await;
    page.says("concerns", "Check that the key is active").await;
    page.says("outcomes", "Failed").await;
    look(&page, "5-barred").await;
    fault(&emulator, "[]").await;
    comes(&page, "headline", "No problems").await;

    // Some codes are not words, some topics are no topics: nothing of them is markup.
    let markup = r#"[{"code":"<img src=x onerror=alert(1)>","status":400,"times":3}]"#;
    fault(&emulator, markup).await;
    let path = "/publish/%3Cimg%20src=x%20onerror=alert(1)%3E";
    assert_eq!(post(&sidecar.publish, path, &[], b"x").await.status, 400);
    page.says("errors", "other").await;
    page.says("outcomes", "Invalid request").await;

    // tollgate is gone, and comes back.
    drop(traffic);
    drop(sidecar);
    page.says("headline", "Disconnected since").await;
    page.says("headline-more", "tollgate cannot be reached").await;
    look(&page, "6-disconnected").await;
    let sidecar = serve(origin.clone()).await;
    page.says("headline", "No problems").await;
    page.says("uptime", "up ").await;
    assert_eq!(page.text("link-words").await, "Live, every second");
    drop(sidecar);

    is_clean(
        &page,
        &origin,
        &["net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE"],
    )
    .await;
}

/// A quarter of an hour of a working day, with a quarter of a minute of trouble.
fn working_day(end: i64) -> Value {
    let calls: Vec<i64> =
        (0..900).map(|i| 560 + (i * 7919) % 61 + 180 * i64::from(i > 500)).collect();
    let pushed: Vec<i64> =
        (0..900).map(|i| if (700..715).contains(&i) { 40 + i % 9 } else { 0 }).collect();
    let billable: Vec<_> =
        calls.iter().zip(&pushed).map(|(calls, pushed)| calls - pushed).collect();
    let uncertain: Vec<_> = (0..900).map(|i| i64::from(i == 300)).collect();
    let stored: Vec<i64> =
        (0..900).map(|i| if (700..760).contains(&i) { 30 + i % 7 } else { 0 }).collect();
    let refused: Vec<i64> = (0..900).map(|i| i64::from(i > 800) * (i % 13)).collect();
    let failed: Vec<i64> = (0..900).map(|i| i64::from(i == 300)).collect();
    let backlog: Vec<i64> = (0..900)
        .map(|i| match i {
            700..760 => (i - 700) * 40,
            760..900 => 2_400 - (i - 760) * 8,
            _ => 0,
        })
        .collect();
    json!({
        "end": end, "billable": billable, "calls": calls, "pushed_back": pushed, "uncertain": uncertain,
        "stored": stored, "refused": refused, "failed": failed, "backlog": backlog
    })
}

fn budget(name: &str, unit: &str, limit: f64, used: f64, reserved: f64, on_exceed: &str) -> Value {
    json!({
        "name": name, "unit": unit, "limit": limit, "used": used, "reserved": reserved,
        "remaining_ratio": (limit - used - reserved) / limit,
        "resets_at": "2026-11-24T00:00:00Z", "on_exceed": on_exceed
    })
}

/// What is not in this release, or takes days to come about.
fn everything() -> Value {
    let topic = |topic: &str, messages: u64, spend: f64| {
        json!({
            "instance": "post-cn-0pp12gl0000", "topic": topic, "messages": messages,
            "uncertain": messages / 100_000, "spend": spend
        })
    };
    let error = |code: &str, count: u64, last: &str| {
        json!({
            "code": code, "count": count, "last": last,
            "words": "The provider accepts fewer calls than tollgate makes.",
            "todo": "tollgate slows down by itself. If it persists, buy more."
        })
    };
    let concern = |level: &str, title: &str| {
        json!({
            "level": level, "title": title,
            "detail": "At 740 messages a second it is reached in 2 h.",
            "todo": "Find the topic that costs most; raise the budget if this spend is expected."
        })
    };
    let members: Vec<_> = (0..20)
        .map(|i| json!({ "name": format!("orders-{i}"), "share": 50 * u32::from(i > 0), "used": 37 + i % 5, "waiting": 0, "starved": i == 0, "seen": "2026-11-23T03:00:00Z" }))
        .collect();
    json!({
        "started": "2026-11-19T08:11:00Z", "now": "2026-11-23T03:00:01Z",
        "endpoint": "onsmqtt.cn-hangzhou.aliyuncs.com",
        "name": "orders-5b6f7c9d4-x2x8z", "instances": ["post-cn-0pp12gl0000", "post-cn-0pp12gl0001"], "region": "cn-hangzhou",
        "last_minute": {
            "seconds": 60, "requests": 44_700, "accepted_ratio": 0.992_3, "delivered": 44_000, "stored": 355,
            "refused": 340, "failed": 5, "invalid": 2, "p50_seconds": 0.012_4, "p99_seconds": 0.48
        },
        "backlog": { "messages": 1_234, "trend": "shrinking", "per_second": -8.0, "empty_in_seconds": 154.2, "outlook": "empty in about 3 min" },
        "tps": 794, "tps_peak": 800, "plan_tps": 900, "history": working_day(1_795_402_800),
        "concerns": [concern("bad", "Budget alarms is used up"), concern("warn", "Budget month is nearly used up"), concern("warn", "Near the bought TPS")],
        "ceilings": [
            { "name": "account", "limit": 1000, "used": 794, "parked": 12, "refused": 3 },
            { "name": "egress_ip", "limit": 1200, "used": 794, "parked": 0, "refused": 0 }
        ],
        "egress": ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"], "blocked": ["10.0.0.3"],
        "waiting": 3, "longest_wait_seconds": 0.013, "last_answer": "2026-11-23T03:00:01Z",
        "last_delivered": "2026-11-23T03:00:01Z",
        "outcomes": { "delivered": 61_234_567, "queued": 1_234, "over_ceiling": 3, "invalid": 7, "unknown": 2 },
        "kept": { "queued": 1_234, "dead": 17, "bytes": 73_400_320, "full": 0.27, "oldest": "2026-11-23T02:57:01Z", "failure": null },
        "key": { "source": "uri", "loaded": "2026-11-23T02:40:00Z", "expires": "2026-11-23T03:40:00Z", "error": null },
        "spend": {
            "currency": "CNY", "priced": true,
            "today": { "messages": 7_654_321, "uncertain": 70, "spend": 15.308_642 },
            "topics": [topic("Telemetry", 7_000_000, 14.0), topic("Orders", 654_000, 1.308), topic("Alarm", 321, 0.000_642)],
            "budgets": [
                budget("month", "CNY", 500.0, 430.25, 12.5, "warn"),
                budget("day", "messages", 20_000_000.0, 7_654_321.0, 100_000.0, "refuse"),
                budget("alarms", "CNY", 1.0, 1.0, 0.0, "refuse")
            ]
        },
        "errors": [
            error("Throttling.User", 657, "2026-11-23T02:56:55Z"),
            error("InvalidSecurityToken.MismatchWithAccessKey", 1, "2026-11-23T02:40:00Z")
        ],
        "fleet": { "mode": "shared", "account": "default", "region": "cn-hangzhou", "all_regions": true, "size": 20, "opens_in_seconds": 0.0, "at": "2026-11-23T03:00:01Z", "members": members }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spend_budgets_plan_and_fleet() {
    let stage = Stage::start().await;
    stage.show(&everything());
    let page = Page::open().await;
    page.go(&format!("http://{}/", stage.address)).await;
    page.says("headline", "1 problem, 2 warnings").await;
    for (id, words) in [
        ("spend", "15.31"),
        ("spend-unit", "CNY"),
        ("topics", "14.00"),
        ("topics", "0.0006"),
        ("budgets", "57.25 CNY left (11 %)"),
        ("budgets", "430.25 used and 12.50 reserved of 500.00; then only a warning."),
        (
            "budgets",
            "7,654,321 used and 100,000 reserved of 20,000,000; then messages are refused.",
        ),
        ("budgets", "1.00 used of 1.00; messages are refused. Resets in 21 h"),
        ("peak", "800 of 900 bought"),
        ("sidecar", "orders-5b6f7c9d4-x2x8z"),
        ("instances", "instances post-cn-0pp12gl0000, post-cn-0pp12gl0001"),
        ("region", "region cn-hangzhou"),
        ("of-fleet", "fleet default of 20 sidecars"),
        ("accepted", "99.2 %"),
        ("accepted-of", "of 44,700 requests"),
        ("latency", "p50 12 ms, p99 480 ms"),
        ("not-accepted", "355 stored, 340 refused, 5 failed, 2 invalid"),
        ("outlook", "empty in about 3 min"),
        ("spend-budget", "budget alarms: used up"),
        ("chart-title", "Messages per second, last 15 minutes"),
        ("legend", "Delivered (message TPS)"),
        ("legend", "Bought TPS 900"),
        ("provider", "probably blocked: 10.0.0.3"),
        ("provider", "in 40 min"),
        (
            "fleet",
            "Ceilings are shared; 20 sidecars of account default, region cn-hangzhou, whose ceiling is shared with all regions",
        ),
        ("members", "starved"),
        ("members-words", "and 8 more: tollgate status --fleet"),
        ("queued-words", "oldest 3 min, 17 dead letters"),
    ] {
        page.says(id, words).await;
    }
    let levels =
        "[...document.querySelectorAll('#budgets .bar')].map(bar => bar.dataset.level).join()";
    assert_eq!(page.eval(levels).await, "warn,ok,bad");
    look(&page, "7-everything").await;
    // The scale follows the traffic, and back.
    page.eval("document.getElementById('zoom').click()").await;
    page.says("chart-words", "Above the chart: Account ceiling, Egress ceiling.").await;
    page.eval("document.getElementById('zoom').click()").await;
    page.until("document.getElementById('chart-words').innerText === ''").await;

    // Nothing is kept, nothing has a price, nothing limits; and the fleet is gone.
    let free =
        |name: &str| json!({ "name": name, "limit": null, "used": 0, "parked": 0, "refused": 0 });
    stage.show(&json!({ "ceilings": [free("account"), free("egress_ip")] }));
    page.says("headline", "No problems").await;
    page.says("queued-words", "spool.store is \"none\"").await;
    page.says("use-words", "No ceiling is configured").await;
    page.says("topics-words", "No price is configured").await;
    page.says("budgets-empty", "None is configured").await;
    assert_eq!(page.eval("document.getElementById('fleet').hidden").await, true);
    look(&page, "8-nothing").await;

    // Answers that are none.
    for (code, body, words) in [
        (500, "", "tollgate answers with status 500."),
        (200, "<html>", "The response cannot be read."),
    ] {
        stage.answer(code, body);
        page.says("headline-more", words).await;
    }
    stage.show(&json!({}));
    page.until("document.getElementById('link').dataset.link === 'on'").await;
    is_clean(&page, &stage.address, &["status of 500"]).await;
}

/// No key, then a budget that is used up, and a Redis that is gone: each with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_no_budget_and_no_redis() {
    let (emulator, folder) = (Emulator::start(&[]).await, tempfile::tempdir().unwrap());
    let (url, spool) = (emulator.url(), folder.path().join("spool").display().to_string());
    let page = Page::open().await;
    let show = async |sidecar: &Serve| page.go(&format!("http://{}/", sidecar.telemetry)).await;

    let missing = folder.path().join("no-such-key").display().to_string();
    let settings =
        [("upstream.endpoint", &*url), ("keys.source", "file"), ("keys.path", &*missing)];
    let sidecar = Serve::start(&settings, &[]).await;
    show(&sidecar).await;
    page.says("concerns", "PROBLEM No access key").await;
    let traffic = Traffic::start(&sidecar.publish, 20);
    page.until("document.querySelector('#legend [data-line=failed] b').textContent > 0").await;
    page.says("accepted", "0 %").await;
    look(&page, "10-no-key").await;
    drop((traffic, sidecar));

    let file = folder.path().join("tollgate.toml");
    let budget = "[billing]\nprice_per_million = 2.0\nplan_tps = 100\n[[billing.budgets]]\nname = \"day\"\n\
                  messages = 200\nperiod = \"day\"\non_exceed = \"refuse\"\n";
    std::fs::write(&file, budget).unwrap();
    let (file, redis) = (file.display().to_string(), Redis::start());
    redis.begin(&[("account", 100)]);
    let fleet = redis.url();
    let settings = [
        ("upstream.endpoint", &*url),
        ("ceilings.account", "100"),
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("fleet.url", &*fleet),
    ];
    let sidecar = Serve::start_with(&["--config", &file], &settings, &[]).await;
    show(&sidecar).await;
    page.says("of-fleet", "fleet default of 1 sidecar").await;
    let traffic = Traffic::start(&sidecar.publish, 40);
    page.says("concerns", "PROBLEM Budget day is used up").await;
    page.says("spend-budget", "budget day: used up").await;
    page.says("outcomes", "Over a budget").await;
    look(&page, "11-budget").await;
    drop(traffic);

    drop(redis);
    comes(&page, "concerns", "Redis does not answer").await;
    look(&page, "12-redis-lost").await;
    comes(&page, "concerns", "PROBLEM Cut off from the fleet").await;
    look(&page, "13-cut-off").await;
}

/// Whatever a status holds, it is text on the page, and not too much of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hostile_names() {
    let stage = Stage::start().await;
    let markup =
        |i: usize| format!("{i}<img src=x onerror='window.pwned=1'><script>pwned=1</script>");
    let many = |of: fn(String) -> Value| (0..10_000).map(|i| of(markup(i))).collect::<Vec<_>>();
    stage.show(&json!({
        "endpoint": markup(0),
        "concerns": many(|name| json!({ "level": "bad", "title": name, "detail": name, "todo": name }))[..100],
        "paused": many(|name| json!({ "instance": name, "topic": name, "why": name, "messages": 1 })),
        "paused_topics": 10_000,
        "blocked": many(Value::from),
        "errors": many(|name| json!({ "code": name, "count": 1, "last": "2026-11-23T03:00:00Z", "words": name, "todo": name }))[..20],
        "spend": {
            "currency": "CNY", "priced": true, "today": { "messages": 10_000, "uncertain": 0, "spend": 1.0 },
            "topics": many(|name| json!({ "instance": "i", "topic": name, "messages": 1, "uncertain": 0, "spend": 0.0001 })),
            "budgets": []
        }
    }));
    let page = Page::open().await;
    page.go(&format!("http://{}/", stage.address)).await;
    page.says("topics", "<img src=x").await;
    page.says("topics", "other topics").await;
    page.says("paused", "9,992 more").await;
    page.says("concerns-more", "and 94 more").await;
    look(&page, "9-hostile").await;
    let count = |id: &str| format!("document.querySelectorAll('#{id} tr').length");
    assert_eq!(page.eval(&count("topics")).await, 11);
    assert_eq!(page.eval(&count("paused")).await, 9);
    assert!(page.eval("document.querySelectorAll('*').length").await.as_u64().unwrap() < 1_000);
    assert_eq!(page.eval("document.querySelectorAll('img, body script').length").await, 0);
    assert_eq!(page.eval("typeof window.pwned").await, "undefined");
    is_clean(&page, &stage.address, &[]).await;
}

/// The same with a sidecar: ten thousand topics, of which it names fifty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_topics() {
    let emulator = Emulator::start(&["--account-qps", "0", "--egress-ip-qps", "0"]).await;
    let sidecar = Serve::start(&[("upstream.endpoint", &emulator.url())], &[]).await;
    for thousand in 0..10 {
        let line = |i| format!("{{\"topic\":\"Topic{thousand}-{i}\",\"payload\":\"x\"}}\n");
        let lines: String = (0..1_000).map(line).collect();
        let headers = [("content-type", "application/x-ndjson"), ("prefer", "wait=30")];
        let answer = post(&sidecar.publish, "/publish", &headers, lines.as_bytes()).await;
        assert_eq!(answer.status, 200);
    }
    let page = Page::open().await;
    page.go(&format!("http://{}/", sidecar.telemetry)).await;
    page.says("spend", "10,000").await;
    page.says("topics", "other topics").await;
    let total = "[...document.querySelectorAll('#topics tr')].reduce((sum, row) => \
                 sum + Number(row.cells[1].textContent.replaceAll(',', '')), 0)";
    assert_eq!(page.eval(total).await, 10_000);
    is_clean(&page, &sidecar.telemetry, &[]).await;
}
