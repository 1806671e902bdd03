//! What a person sees in a browser, in each state that tollgate can be in.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use support::browser::Page;
use support::http::{get, post, series};
use support::process::{Emulator, Serve};
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
                    tokio::spawn(async move { post(&address, "/publish/TopicA/x", &headers, b"x").await });
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

/// Words that stand out too little from their ground, by the rule of WCAG 2 AA; boxes that are
/// wider than the page; cells without a heading; pictures and meters without a name.
const FLAWS: &str = r"(() => {
  const flaws = [], room = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > room) flaws.push('the page is wider than ' + room);
  const parse = text => text.match(/[\d.]+/g).map(Number);
  const over = (top, under) => [0, 1, 2].map(i => (top[3] ?? 1) * top[i] + (1 - (top[3] ?? 1)) * under[i]);
  const ground = node => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      layers.push(color);
      if ((color[3] ?? 1) === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const light = rgb => rgb.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  for (const node of document.body.querySelectorAll('*')) {
    if (!node.checkVisibility()) continue;
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    const box = node.getBoundingClientRect();
    if (own && box.right > room + 1 && !node.closest('.skip, .unseen')) flaws.push('off the page: ' + node.textContent);
    if (own && node.scrollWidth > node.clientWidth + 1 && node.clientWidth && getComputedStyle(node).display !== 'inline' && !node.closest('.unseen')) flaws.push('cut off: ' + node.textContent);
    if (own) {
      const under = ground(node), [a, b] = [light(over(parse(getComputedStyle(node).color), under)), light(under)];
      const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      if (contrast < 4.5) flaws.push(`contrast ${contrast.toFixed(2)}: ` + node.textContent);
    }
    if (node.matches('[role=meter], [role=img], section, table') && !(node.ariaLabel || node.getAttribute('aria-labelledby') || node.closest('section[aria-labelledby]'))) flaws.push('no name: ' + node.id);
    if (node.matches('thead th') && node.scope !== 'col') flaws.push('no scope: ' + node.textContent);
  }
  if (document.querySelectorAll('[role=status][aria-live=polite]').length !== 1) flaws.push('no live region');
  return flaws;
})()";

/// Looks at the page as it is now in both schemes and on a phone, and keeps pictures if asked to.
async fn look(page: &Page, state: &str) {
    for (name, dark, width) in
        [("light", false, 1280), ("dark", true, 1280), ("phone", false, 360), ("phone-dark", true, 360)]
    {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_state_of_a_sidecar() {
    let emulator = Emulator::start(&[]).await;
    let (url, folder) = (emulator.url(), tempfile::tempdir().unwrap());
    let spool = folder.path().display().to_string();
    let settings = |telemetry: String| {
        [
            ("listen.telemetry", telemetry),
            ("upstream.endpoint", url.clone()),
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
    page.says("headline", "All is well").await;
    page.says("outcomes-empty", "No request yet").await;
    page.says("chart-words", "No call in the last 15 minutes").await;
    assert_eq!(page.text("tps").await, "0");
    look(&page, "1-idle").await;

    // Busy: the figures are those of the metrics.
    let traffic = Traffic::start(&sidecar.publish, 50);
    let end = tokio::time::Instant::now() + support::http::BOUND;
    loop {
        let before = get(&origin, "/metrics").await.text();
        let polls = page.requests().len();
        while page.requests().len() < polls + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
    page.says("headline", "All is well").await;
    page.says("topics", "TopicA").await;
    look(&page, "2-busy").await;

    // More than the ceiling lets through.
    traffic.set(300);
    page.says("concerns", "At the account's ceiling").await;
    page.says("outcomes", "Over a ceiling").await;
    page.until("document.getElementById('use-bar').ariaValueNow >= 95").await;
    look(&page, "3-saturated").await;
    traffic.set(50);
    page.says("headline", "All is well").await;

    // The provider fails.
    fault(&emulator, r#"[{"code":"SendMessageFailed"}]"#).await;
    page.says("concerns", "Delivery fails for TopicA").await;
    page.says("paused", "TopicA").await;
    page.says("errors", "SendMessageFailed").await;
    page.until("document.getElementById('queued').innerText.replace(',', '') > 50").await;
    assert_eq!(page.eval("document.getElementById('state').dataset.level").await, "bad");
    look(&page, "4-outage").await;
    fault(&emulator, "[]").await;
    page.says("headline", "All is well").await;
    page.until("document.getElementById('queued').innerText < 50").await;

    // The provider does not let us in.
    fault(&emulator, r#"[{"code":"SignatureDoesNotMatch"}]"#).await;
    page.says("concerns", "The provider refuses our key").await;
    page.says("concerns", "Check that the key is active").await;
    page.says("outcomes", "Failed").await;
    look(&page, "5-barred").await;
    fault(&emulator, "[]").await;
    page.says("headline", "All is well").await;

    // Some codes are not words, some topics are no topics: nothing of them is markup.
    let markup = r#"[{"code":"<img src=x onerror=alert(1)>","times":3}]"#;
    fault(&emulator, markup).await;
    let path = "/publish/%3Cimg%20src=x%20onerror=alert(1)%3E";
    assert_eq!(post(&sidecar.publish, path, &[], b"x").await.status, 400);
    page.says("errors", "other").await;
    page.says("outcomes", "Not a message").await;

    // tollgate is gone, and comes back.
    drop(traffic);
    drop(sidecar);
    page.says("headline", "Disconnected since").await;
    page.says("headline-more", "It cannot be reached").await;
    look(&page, "6-disconnected").await;
    let sidecar = serve(origin.clone()).await;
    page.says("headline", "All is well").await;
    page.says("uptime", "up ").await;
    assert_eq!(page.text("link-words").await, "Live, every second");
    drop(sidecar);

    is_clean(&page, &origin, &["net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE"]).await;
}
