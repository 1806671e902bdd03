//! `values.yaml` explains each value, and the chart's README lists them all.

use std::fmt::Write as _;

use super::{CHART, read, root};

/// The number that an alert's value is compared with first.
pub(super) fn threshold(expr: &str) -> Option<String> {
    let number = |rest: &str| {
        let rest = rest.trim_start_matches('=').trim_start();
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        Some(rest[..end].to_owned()).filter(|number| !number.is_empty())
    };
    expr.match_indices(['<', '>']).find_map(|(at, _)| number(&expr[at + 1..]))
}

/// Path, default and explanation of each value, in the order of the file.
pub(super) fn values(text: &str) -> Vec<(String, String, String)> {
    let mut rows: Vec<(String, String, String)> = Vec::new();
    let (mut path, mut comment, mut inside): (Vec<(usize, String)>, String, usize) =
        Default::default();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim_start();
        if let Some(words) = line.strip_prefix("# ") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(words.trim());
            continue;
        }
        if line.is_empty() || line.starts_with("## ") {
            assert!(comment.is_empty(), "a comment explains nothing: {comment}");
            continue;
        }
        // Of a block, or of a value that is no section of ours.
        if inside > 0 && indent >= inside {
            continue;
        }
        let (key, default) = line.split_once(':').unwrap();
        path.retain(|(at, _)| *at < indent);
        path.push((indent, key.to_owned()));
        let name = path.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
        let explained = std::mem::take(&mut comment);
        let sections = [
            "image",
            "rrsa",
            "publish",
            "spool",
            "probes",
            "keyring",
            "autoscaling",
            "service",
            "networkPolicy",
            "podDisruptionBudget",
            "serviceAccount",
            "monitoring",
        ];
        let default = default.trim();
        inside = if sections.contains(&name.as_str()) { 0 } else { indent + 1 };
        let is_section = inside == 0;
        if is_section && explained.is_empty() {
            continue;
        }
        assert!(!explained.is_empty(), "values.yaml does not explain {name}");
        let default = match default {
            "" if is_section => String::new(),
            "" | "|" => "see `values.yaml`".to_owned(),
            value => format!("`{value}`"),
        };
        rows.push((name, default, explained));
    }
    rows
}

fn alerts() -> String {
    let mut table =
        "| alert | threshold | for | severity |\n| --- | --- | --- | --- |\n".to_owned();
    let text = read("deploy/prometheus/alerts.yaml");
    for alert in text.split("- alert: ").skip(1) {
        let (name, body) = alert.split_once('\n').unwrap();
        let (expr, rest) = body.split_once("labels:").unwrap();
        let (expr, after) = expr.split_once("\n        for:").unwrap_or((expr, ""));
        let severity =
            rest.split("severity: ").nth(1).unwrap().split([' ', '}', ',']).next().unwrap();
        let threshold = threshold(expr.replace(">-", "").as_str()).unwrap_or_default();
        writeln!(table, "| {name} | {threshold} | {} | {severity} |", after.trim()).unwrap();
    }
    table
}

#[test]
fn chart_readme() {
    let path = format!("{CHART}/README.md");
    let mut table = "| value | default | |\n| --- | --- | --- |\n".to_owned();
    let values = values(&read(&format!("{CHART}/values.yaml")));
    assert!(values.len() > 70, "{}", values.len());
    for (name, default, explained) in values {
        writeln!(
            table,
            "| `{name}` | {} | {} |",
            default.replace('|', "\\|"),
            explained.replace('|', "\\|")
        )
        .unwrap();
    }
    let text = read(&path);
    let (head, _) = text.split_once("<!-- values -->").unwrap();
    let (_, rest) = text.split_once("\n## Alerts").unwrap();
    let (middle, _) = rest.split_once("<!-- alerts -->").unwrap();
    let made = format!(
        "{head}<!-- values -->\n\n{table}\n## Alerts{middle}<!-- alerts -->\n\n{}",
        alerts()
    );
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(root().join(&path), &made).unwrap();
    }
    assert_eq!(read(&path), made, "run UPDATE=1 cargo test --test tools chart_readme");
}
