//! A real browser without a screen: Debian's chromium, which `tests/setup.sh` installs. It is told
//! what to do over a pair of pipes: one JSON object after another, each ended by a zero byte. That
//! needs no port, no library, and the browser ends when the pipes do.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::http::BOUND;

/// How often a page is asked whether it is so by now.
const LOOK: Duration = Duration::from_millis(50);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// A page in a browser of its own; both end with the test.
pub struct Page {
    to: tokio::sync::Mutex<ChildStdin>,
    next: std::sync::atomic::AtomicU64,
    waiting: Waiting,
    events: Arc<Mutex<Vec<Value>>>,
    session: String,
    _browser: Child,
    _folder: tempfile::TempDir,
}

impl Page {
    pub async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Its messages come in on 3 and go out on 4. Root may not have the sandbox.
        let mut browser = Command::new("sh")
            .arg("-c")
            .arg("exec 3<&0 4>&1 </dev/null >/dev/null; exec chromium \"$@\"")
            .args(["chromium", "--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-extensions"])
            .args(["--disable-component-update", "--force-color-profile=srgb"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (waiting, events) = (Waiting::default(), Arc::default());
        let from = BufReader::new(browser.stdout.take().unwrap());
        tokio::spawn(read(from, Arc::clone(&waiting), Arc::clone(&events)));
        let mut page = Self {
            to: browser.stdin.take().unwrap().into(),
            next: 1.into(),
            waiting,
            events,
            session: String::new(),
            _browser: browser,
            _folder: folder,
        };
        let target = page.tell("Target.createTarget", json!({ "url": "about:blank" })).await;
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let session = page.tell("Target.attachToTarget", target).await;
        page.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            page.tell(&format!("{domain}.enable"), json!({})).await;
        }
        // Reported here also where a console would not say so.
        let watch = "window.violations = []; addEventListener('securitypolicyviolation', \
                     e => violations.push(e.violatedDirective + ' ' + e.blockedURI));";
        page.tell("Page.addScriptToEvaluateOnNewDocument", json!({ "source": watch })).await;
        page
    }

    /// One command and what came of it.
    pub async fn tell(&self, method: &str, params: Value) -> Value {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (told, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, told);
        let mut command = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        let sent = self.to.lock().await.write_all(&bytes).await;
        sent.expect("chromium is missing or does not start: run tests/setup.sh");
        let answer = timeout(BOUND, answer).await.expect("the browser answers in time");
        let answer = answer.expect("chromium is missing or does not start: run tests/setup.sh");
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    pub async fn go(&self, url: &str) {
        self.tell("Page.navigate", json!({ "url": url })).await;
        self.until("document.readyState === 'complete'").await;
    }

    /// What an expression is in the page.
    pub async fn eval(&self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.tell("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        let end = Instant::now() + BOUND;
        // While a document goes, there is nothing to ask.
        let guarded =
            format!("(() => {{ try {{ return !!({expression}); }} catch {{ return false; }} }})()");
        while self.eval(&guarded).await != true {
            if Instant::now() > end {
                let text = self.eval("document.body.innerText").await;
                panic!("{expression} does not become true:\n{}", text.as_str().unwrap_or_default());
            }
            sleep(LOOK).await;
        }
    }

    /// The text of the element with this id.
    pub async fn text(&self, id: &str) -> String {
        let text = self.eval(&format!("document.getElementById('{id}').textContent.trim()")).await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until the text of an element holds these words.
    pub async fn says(&self, id: &str, words: &str) {
        let words = Value::from(words);
        self.until(&format!("document.getElementById('{id}').innerText.includes({words})")).await;
    }

    pub async fn look(&self, dark: bool, width: u32) {
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.tell("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.tell("Emulation.setDeviceMetricsOverride", size).await;
        let drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => \
                     requestAnimationFrame(() => done(true)))))";
        self.eval(drawn).await;
    }

    /// The whole page as a PNG.
    pub async fn shot(&self) -> Vec<u8> {
        let size = self.tell("Page.getLayoutMetrics", json!({})).await["cssContentSize"].clone();
        let clip =
            json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let params = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let shot = self.tell("Page.captureScreenshot", params).await;
        STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()
    }

    /// Every address that the page has asked for.
    pub fn requests(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let sent = events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// Errors and warnings of the console, exceptions that nobody caught, and dialogs.
    pub fn complaints(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let complaint = |event: &Value| {
            let params = &event["params"];
            let loud = |level: &Value| ["error", "warning", "assert"].iter().any(|l| level == l);
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" | "Page.javascriptDialogOpening" => true,
                "Runtime.consoleAPICalled" => loud(&params["type"]),
                "Log.entryAdded" => loud(&params["entry"]["level"]),
                _ => false,
            }
        };
        events.iter().filter(|event| complaint(event)).map(|e| e["params"].to_string()).collect()
    }
}

async fn read(mut from: BufReader<ChildStdout>, waiting: Waiting, events: Arc<Mutex<Vec<Value>>>) {
    let mut frame = Vec::new();
    while from.read_until(0, &mut frame).await.is_ok_and(|n| n > 0) {
        let message: Value = serde_json::from_slice(&frame[..frame.len() - 1]).unwrap_or_default();
        frame.clear();
        let told = message["id"].as_u64().and_then(|id| waiting.lock().unwrap().remove(&id));
        match told {
            Some(told) => drop(told.send(message)),
            None => events.lock().unwrap().push(message),
        }
    }
    // Whoever still waits is told that nothing comes.
    waiting.lock().unwrap().clear();
}
