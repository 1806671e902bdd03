//! What watches a sidecar is whole: rules that are right, alerts with runbooks, panels that say what
//! they show.

use std::collections::BTreeSet;

use crate::support::process::{Emulator, Serve, run};
use crate::support::prometheus::{alerts, commands, dashboard, file, promtool};
use serde_json::Value;

/// What promtool plays.
const TESTS: [&str; 4] =
    ["tests.yaml", "tests_objectives.yaml", "tests_fleet.yaml", "tests_kept.yaml"];

#[tokio::test]
async fn promtool_is_content() {
    for args in [
        &["check", "config", "try.yaml"][..],
        &["check", "rules", "rules.yaml", "alerts.yaml"],
        &[&["test", "rules"], &TESTS[..]].concat(),
    ] {
        let (content, said) = promtool(args, "").await;
        assert!(content, "promtool {}:\n{said}", args.join(" "));
    }
    // Debian's Prometheus is built without Kubernetes, and reads all but that.
    let (content, said) = promtool(&["check", "config", "scrape.yaml"], "").await;
    assert!(!content && said.contains("kubernetes_sd_configs not found"), "{said}");

    // Each alert is shown firing and not firing.
    let tests: String = TESTS.iter().map(|name| file(name)).collect();
    for alert in alerts() {
        let fires =
            format!("        alertname: {alert}\n        exp_alerts:\n          - exp_labels");
        assert!(tests.contains(&fires), "{alert} is never shown firing");
        let silent = format!("alertname: {alert}, exp_alerts: [] }}");
        assert!(tests.contains(&silent), "{alert} is never shown not firing");
    }
}

#[test]
fn each_alert_has_a_runbook() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbooks.md");
    let runbooks = std::fs::read_to_string(path).unwrap();
    let sections: BTreeSet<_> =
        runbooks.lines().filter_map(|l| l.strip_prefix("## ").map(str::to_owned)).collect();
    let alerts = alerts();
    assert_eq!(sections, alerts.iter().cloned().collect());
    let text = file("alerts.yaml");
    for (alert, body) in alerts.iter().zip(text.split("- alert: ").skip(1)) {
        for part in ["severity: ", "summary: ", "description: ", "for: "] {
            // What one event says needs no second look.
            let at_once = part == "for: " && body.contains("[1");
            assert!(body.contains(part) || at_once, "{alert} has no {part}");
        }
        let anchor = format!("docs/runbooks.md#{}'", alert.to_ascii_lowercase());
        assert!(body.contains(&anchor), "{alert} does not lead to {anchor}");
    }
    let links = runbooks.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap());
    let anchors: Vec<_> = alerts.iter().map(|alert| alert.to_ascii_lowercase()).collect();
    for link in links {
        assert!(anchors.iter().any(|anchor| anchor == link), "{link} leads nowhere");
    }
}

#[tokio::test]
async fn runbooks_name_what_exists() {
    let emulator = Emulator::start(&[]).await;
    let serve = Serve::start(&[("upstream.endpoint", &emulator.url())], &[]).await;
    let mut checked = 0;
    for command in commands() {
        if let Some(path) = command.strip_prefix("tollgate get ") {
            let got = run(&["get", path.trim_matches('\''), "--at", &serve.telemetry], &[]).await;
            assert_eq!(got.code, 0, "{command}: {}", got.stderr);
            checked += 1;
        } else if let Some(args) = command.strip_prefix("tollgate ") {
            let words: Vec<_> = args.split(' ').collect();
            let verbs = words.iter().copied().take_while(|w| !w.starts_with('-'));
            let verbs: Vec<_> = verbs.chain(["--help"]).collect();
            let help = run(&verbs, &[]).await;
            assert_eq!(help.code, 0, "{command}: {}", help.stderr);
            for flag in words.iter().filter(|w| w.starts_with('-')) {
                assert!(help.stdout.contains(flag), "{command}: there is no {flag}");
            }
            checked += 1;
        } else {
            // The operator's own machine has these: tests/tools/operators.rs.
            assert!(
                command.starts_with("kubectl ") || command.starts_with("promql> "),
                "{command}"
            );
        }
    }
    assert!(checked > 20, "only {checked} commands were found");
}

#[test]
fn panels_say_what_they_show() {
    let (dashboard, queries) = dashboard();
    assert!(queries.len() > 40);
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        if panel["type"] == "row" {
            continue;
        }
        let says = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
        assert!(says(&panel["description"]), "{title} has no description");
        assert!(says(&panel["fieldConfig"]["defaults"]["unit"]), "{title} has no unit");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().unwrap() {
            let legend = target["legendFormat"].as_str().unwrap();
            assert!(!legend.is_empty() && !legend.contains("__auto"), "{title} has no legend");
            // A label of the legend that the query takes away would be blank.
            let query = target["expr"].as_str().unwrap();
            let labels = legend.split("{{").skip(1).map(|l| l.split("}}").next().unwrap());
            for label in labels.filter(|_| query.contains(" by (")) {
                let kept = query.split(" by (").skip(1).any(|rest| {
                    rest.split(')').next().unwrap().split(", ").any(|kept| kept == label)
                });
                assert!(kept, "{title}: {label} is not in {query}");
            }
        }
    }
}
