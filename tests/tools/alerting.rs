//! What an operator gets: a real Prometheus fires, a real Alertmanager routes by severity, and the dashboard
//! draws its lines where the alerts have their thresholds.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use crate::support::http::get;
use crate::support::ports::free_port;
use crate::support::prometheus::{
    Prometheus, VARIABLES, alerts, dashboard, file, folder, replaced,
};
use crate::support::script::Script;
use crate::support::secrets::Searched as _;
use crate::support::until;
use serde_json::Value;
use tokio::process::{Child, Command};

/// An Alertmanager that ends with its test.
struct Alertmanager {
    address: String,
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Alertmanager {
    /// Starts one with `deploy/prometheus`'s routes to this receiver, without a wait for more of a group.
    async fn start(receiver: &Script) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let config = replaced(&file("alertmanager.yaml"), "http://127.0.0.1:9095", &receiver.url);
        let config = replaced(&config, "group_wait: 30s", "group_wait: 0s");
        let path = temporary.path().join("alertmanager.yaml");
        std::fs::write(&path, config).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let process = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.path={}", temporary.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus-alertmanager is missing: run tests/setup.sh");
        until("Alertmanager serves", async || {
            tokio::net::TcpStream::connect(&address).await.is_ok()
                && get(&address, "/-/ready").await.status == 200
        })
        .await;
        Self { address, _process: process, _folder: temporary }
    }

    /// A Prometheus that has these series, as rules that record them, and sends the alerts that follow at once.
    async fn prometheus(&self, series: &str) -> Prometheus {
        let alerting = format!(
            "alerting:\n  alertmanagers:\n    - static_configs: [{{ targets: [\"{}\"] }}]\n",
            self.address
        );
        let config =
            replaced(&file("try.yaml"), "[rules.yaml, alerts.yaml]", "[made.yaml, alerts.yaml]");
        let config = replaced(&config, "127.0.0.1:9464", &format!("127.0.0.1:{}", free_port()));
        let at_once: Vec<_> = file("alerts.yaml")
            .lines()
            .filter(|line| !line.trim_start().starts_with("for: "))
            .map(str::to_owned)
            .collect();
        let made = format!("groups:\n  - name: made\n    rules:\n{series}");
        let all = [("made.yaml", made), ("alerts.yaml", at_once.join("\n") + "\n")];
        Prometheus::start_with(&(config + &alerting), &all).await
    }
}

async fn amtool(args: &[&str]) -> String {
    let run = Command::new("amtool").args(args).current_dir(folder()).searched().await;
    let output = run.expect("amtool is missing: run tests/setup.sh");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "amtool {}:\n{errors}", args.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// One of each severity, the metric that raises it, and where it goes.
const EACH: [(&str, &str, &str, &str); 3] = [
    ("TollgateSpoolFailing", "critical", "tollgate_spool_failing", "/pager"),
    ("TollgateLedgerFailing", "warning", "tollgate_ledger_failing", "/tickets"),
    ("TollgateRestartPending", "info", "tollgate_config_pending_restart_keys", "/chat"),
];

#[tokio::test]
async fn an_alert_of_each_severity_reaches_its_receiver() {
    amtool(&["check-config", "alertmanager.yaml"]).await;
    let receiver = Script::start([]).await;
    let alertmanager = Alertmanager::start(&receiver).await;
    // What a sidecar in trouble says.
    let made = EACH.map(|(_, _, metric, _)| {
        let labels = "{ cluster: east, namespace: shop, pod: a }";
        format!("      - {{ record: {metric}, expr: vector(1), labels: {labels} }}\n")
    });
    let _prometheus = alertmanager.prometheus(&made.concat()).await;

    for (alert, severity, _, path) in EACH {
        let what = format!("{alert} reaches {path}");
        until(&what, async || {
            let got = receiver.requests();
            let mut to_path =
                got.iter().filter(|request| request.starts_with(&format!("POST {path} ")));
            to_path.any(|request| {
                request.contains(&format!("\"alertname\":\"{alert}\""))
                    && request.contains(&format!("\"severity\":\"{severity}\""))
                    && request.contains("\"cluster\":\"east\"")
                    && request.contains(&format!("docs/runbooks.md#{}", alert.to_ascii_lowercase()))
            })
        })
        .await;
    }
    for request in receiver.requests() {
        let (path, _) = request.strip_prefix("POST ").unwrap().split_once(' ').unwrap();
        let others = EACH.iter().filter(|(.., to)| *to != path);
        for (alert, ..) in others {
            assert!(!request.contains(&format!("\"{alert}\"")), "{alert} is in {request}");
        }
    }
}

#[tokio::test]
async fn each_alert_has_a_route_of_its_own() {
    let severities: BTreeSet<_> = bodies().into_values().map(|body| severity(&body)).collect();
    assert_eq!(severities, EACH.map(|(_, severity, ..)| severity.to_owned()).into());
    for (_, severity, _, path) in EACH {
        let label = format!("severity={severity}");
        let test = ["config", "routes", "test", "--config.file", "alertmanager.yaml", &label];
        assert_eq!(amtool(&test).await.trim(), path.trim_start_matches('/'));
    }
    // An inhibition that names no alert inhibits nothing.
    let routes = file("alertmanager.yaml");
    for name in routes.split("alertname=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(alerts().iter().any(|alert| alert == name), "{name} is no alert");
    }
}

fn bodies() -> BTreeMap<String, String> {
    let text = file("alerts.yaml");
    let parts = text.split("- alert: ").skip(1).map(str::to_owned);
    alerts().into_iter().zip(parts).collect()
}

fn severity(body: &str) -> String {
    let (_, rest) = body.split_once("severity: ").unwrap();
    rest.split(' ').next().unwrap().to_owned()
}

/// What a rule adds up stays one of its cluster and namespace, unless clusters share it: an account's ceilings, and an
/// instance's plan.
#[test]
fn rules_keep_cluster_and_namespace() {
    let text = file("rules.yaml");
    let mut kept = 0;
    for rule in text.split("- record: ").skip(1) {
        let (name, body) = rule.split_once('\n').unwrap();
        let level = name.split(':').next().unwrap();
        if level.starts_with("account_region") || level == "instance" {
            continue;
        }
        assert!(level.starts_with("cluster_namespace"), "{name}");
        let body = body.split("\n  - name:").next().unwrap();
        for aggregation in ["sum", "max", "min", "avg", "count"] {
            for rest in body.split(&format!("{aggregation} ")).skip(1) {
                let by = rest.trim_start().strip_prefix("by (").unwrap_or(rest);
                assert!(by.starts_with("cluster, namespace"), "{name}: {aggregation} {rest}");
            }
            assert!(!body.contains(&format!("{aggregation}(")), "{name}: {aggregation} of all");
        }
        kept += 1;
    }
    assert!(kept > 20, "{kept}");
}

/// Comparisons with figures in an alert's expression: the operator and the figure.
fn thresholds(body: &str) -> Vec<(String, f64)> {
    let (_, rest) = body.split_once("expr: ").unwrap();
    let ends = ["\n        for: ", "\n        labels: "];
    let end = ends.iter().filter_map(|end| rest.find(end)).min().unwrap();
    // Labels are text, and ranges are no figures.
    let expression: String = rest[..end].split('"').step_by(2).collect();
    let words: Vec<_> = expression.split([' ', '\n', '(', ')']).filter(|w| !w.is_empty()).collect();
    let pairs = words.windows(2).filter(|pair| [">", ">=", "<", "<=", "=="].contains(&pair[0]));
    pairs.filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?))).collect()
}

/// Whether a line on the dashboard is where the alert begins: more than none is from the first on.
fn meets(line: f64, (operator, figure): &(String, f64)) -> bool {
    if operator == ">" && figure.total_cmp(&0.0).is_eq() {
        0.0 < line && line <= 1.0
    } else {
        line.total_cmp(figure).is_eq()
    }
}

#[test]
fn lines_on_the_dashboard_are_the_alerts_thresholds() {
    let bodies = bodies();
    let (dashboard, _) = dashboard();
    let mut seen = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let links = panel["links"].as_array().cloned().unwrap_or_default();
        let mut of_alerts = Vec::new();
        for link in links {
            let alert = link["title"].as_str().unwrap().to_owned();
            let body = bodies.get(&alert).unwrap_or_else(|| panic!("{title}: {alert} is no alert"));
            let to = format!("${{runbooks}}docs/runbooks.md#{}", alert.to_ascii_lowercase());
            assert_eq!(link["url"], *to, "{title}");
            of_alerts.push((alert, thresholds(body)));
        }
        let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array();
        let drawn: Vec<_> =
            steps.into_iter().flatten().filter_map(|step| step["value"].as_f64()).collect();
        for line in &drawn {
            let shared = of_alerts.iter().any(|(_, all)| all.iter().any(|one| meets(*line, one)));
            assert!(shared, "{title} has a line at {line}, and its alerts have {of_alerts:?}");
        }
        for (alert, all) in of_alerts {
            // An alert that compares with no figure has no line.
            let has_line =
                all.is_empty() || all.iter().any(|one| drawn.iter().any(|line| meets(*line, one)));
            if has_line {
                seen.insert(alert);
            }
        }
    }
    let all: BTreeSet<_> = bodies.into_keys().collect();
    let missing: Vec<_> = all.difference(&seen).collect();
    assert!(missing.is_empty(), "no panel shows the thresholds of {missing:?}");
}

#[test]
fn the_dashboard_begins_with_health_and_uses_its_variables() {
    let (dashboard, _) = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    assert_eq!((&panels[0]["type"], &panels[0]["title"]), (&"row".into(), &"Health".into()));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> =
        variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, [&["datasource", "runbooks"], &VARIABLES[..]].concat());
    let text = Value::from(panels.clone()).to_string();
    for name in names {
        let used = text.contains(&format!("${name}")) || text.contains(&format!("${{{name}}}"));
        assert!(used, "no panel uses ${name}");
    }
    // Each of the chain offers what the ones before it leave.
    for pair in VARIABLES.windows(2).take(3) {
        let next = variables.iter().find(|variable| variable["name"] == pair[1]).unwrap();
        let before = format!("{0}=~\"${0}\"", pair[0]);
        assert!(next["definition"].as_str().unwrap().contains(&before), "{next}");
    }
    // A panel of a sidecar's metrics is of the chosen ones, unless it says that it is not.
    for panel in panels {
        let says = panel["description"].as_str().is_some_and(|text| {
            text.contains("is chosen above") || text.contains("else is chosen")
        });
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let chosen =
                query.contains("cluster=~\"$cluster") && query.contains("namespace=~\"$namespace");
            assert!(chosen || says, "{}: {query}", panel["title"]);
        }
    }
    // Quantiles are named as such.
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
    {
        let query = target["expr"].as_str().unwrap();
        if let Some((_, rest)) = query.split_once("histogram_quantile(0.") {
            let legend = target["legendFormat"].as_str().unwrap();
            let digits = rest.split(',').next().unwrap();
            assert!(legend.starts_with(&format!("p{digits:0<2}")), "{legend}: {query}");
        }
    }
}
