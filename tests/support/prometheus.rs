//! A real Prometheus and its promtool. `tests/setup.sh` installs them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::http::{BOUND, get};
use super::secrets::search;

/// It plays hours of alerts in seconds, and in many on a busy machine.
const PROMTOOL: Duration = Duration::from_mins(3);

/// `deploy/prometheus`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus")
}

pub fn file(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// Text with one part replaced, that must be there.
pub fn replaced(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "{old:?} is not in\n{text}");
    text.replace(old, new)
}

/// A Prometheus that ends with its test, with its data in a folder of its own.
pub struct Prometheus {
    pub address: String,
    process: Child,
    folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one on a free port with this configuration, its times cut to a second, beside
    /// `deploy/prometheus`'s rules. Returns when it serves.
    pub async fn start(config: &str) -> Self {
        let rules = replaced(&file("rules.yaml"), "interval: 1m", "interval: 1s");
        let rules = [("rules.yaml", rules), ("alerts.yaml", file("alerts.yaml"))];
        Self::start_with(config, &rules).await
    }

    /// The same, with these files of rules.
    pub async fn start_with(config: &str, rules: &[(&str, String)]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let at = temporary.path();
        let config = replaced(config, "scrape_interval: 15s", "scrape_interval: 1s");
        let config = replaced(&config, "evaluation_interval: 15s", "evaluation_interval: 1s");
        std::fs::write(at.join("prometheus.yaml"), config).unwrap();
        for (name, text) in rules {
            std::fs::write(at.join(name), text).unwrap();
        }
        let address = format!("127.0.0.1:{}", super::ports::free_port());
        let log = std::fs::File::create(at.join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", at.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", at.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            // Its Alertmanager is found a few seconds after the first alert.
            .arg("--rules.alert.resend-delay=1s")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is missing: run tests/setup.sh");
        let mut started = Self { address, process, folder: temporary };
        let serving = async {
            loop {
                if let Some(status) = started.process.try_wait().unwrap() {
                    let log = std::fs::read_to_string(started.folder.path().join("log"));
                    panic!("prometheus ended ({status}):\n{}", log.unwrap());
                }
                if tokio::net::TcpStream::connect(&started.address).await.is_ok()
                    && get(&started.address, "/-/ready").await.status == 200
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(BOUND, serving).await.expect("prometheus serves in time");
        started
    }

    /// `data` of an answer of its API; what it says against the question otherwise.
    pub async fn api(&self, path: &str) -> Result<Value, String> {
        let answer = get(&self.address, &format!("/api/v1/{path}")).await.json();
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer["error"].as_str().unwrap_or("no error is given").to_owned()),
        }
    }

    /// An instant query: labels and value of each series.
    pub async fn ask(&self, query: &str) -> Result<Vec<(BTreeMap<String, String>, f64)>, String> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let data = self.api(&format!("query?query={query}")).await?;
        if data["resultType"] != "vector" {
            return Err(format!("a {} and no vector", data["resultType"]));
        }
        let series = |series: &Value| {
            let labels = serde_json::from_value(series["metric"].clone()).unwrap();
            (labels, series["value"][1].as_str().unwrap().parse().unwrap())
        };
        Ok(data["result"].as_array().unwrap().iter().map(series).collect())
    }

    /// The one value that a query has; 0 where there is none.
    pub async fn one(&self, query: &str) -> f64 {
        let all = self.ask(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        assert!(all.len() <= 1, "{query}: {all:?}");
        all.first().map_or(0.0, |(_, value)| *value)
    }

    /// Waits until a query has a value of at least this.
    pub async fn reaches(&self, query: &str, least: f64) {
        let reached = async {
            while self.one(query).await < least {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let reached = timeout(BOUND, reached).await;
        assert!(reached.is_ok(), "{query} is {} and not {least}", self.one(query).await);
    }

    /// All rules that it has loaded.
    pub async fn rules(&self) -> Vec<Value> {
        let data = self.api("rules").await.unwrap();
        let groups = data["groups"].as_array().unwrap().clone();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }
}

/// What promtool says, and whether it is content.
pub async fn promtool(args: &[&str], stdin: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(args)
        .current_dir(folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("promtool is missing: run tests/setup.sh");
    // It may end without reading what it is not asked to.
    let mut input = child.stdin.take().unwrap();
    drop(input.write_all(stdin.as_bytes()).await);
    drop(input);
    let output = timeout(PROMTOOL, child.wait_with_output()).await.expect("promtool ends").unwrap();
    search(&output);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// What one chooses on the dashboard.
pub const VARIABLES: [&str; 6] = ["cluster", "namespace", "service", "pod", "instance", "topic"];

/// The dashboard's queries as Grafana would ask them, with all chosen.
pub fn dashboard() -> (Value, Vec<(String, String)>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana/tollgate.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
            let mut query = target["expr"].as_str().unwrap().to_owned();
            for (variable, value) in [("$__rate_interval", "1m"), ("$__range", "1h")] {
                query = query.replace(variable, value);
            }
            for variable in VARIABLES {
                query = query.replace(&format!("${variable}"), ".*");
            }
            assert!(!query.contains('$'), "an unknown variable: {query}");
            queries.push((format!("panel {}", panel["title"]), query));
        }
    }
    (dashboard, queries)
}

/// Commands and questions of the runbooks: indented, one a line.
pub fn commands() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbooks.md");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter_map(|l| l.strip_prefix("    ")).map(|l| l.trim().to_owned()).collect()
}

/// The names of the alerts, as the file has them.
pub fn alerts() -> Vec<String> {
    let text = file("alerts.yaml");
    let alerts: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned))
        .collect();
    assert!(alerts.len() > 15, "{alerts:?}");
    alerts
}
