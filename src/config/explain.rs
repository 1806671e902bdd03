//! A configuration as a person reads it: each value, where it came from, and what follows.

use std::fmt::Write;

use crate::answer::PRECEDENCE;

use super::setting::grouped;
use super::{Ceilings, Loaded, Setting, Upstream};

/// A longer value does not push the origins of all others away.
const WIDEST_VALUE: usize = 40;

/// The whole configuration by section, with the origin of each value, then the ceilings that
/// follow from it, and the order in which things decide what an answer means.
pub fn explain(loaded: &Loaded) -> String {
    let mut text = String::new();
    let names = loaded.settings.iter().map(|setting| split(setting).1.chars().count());
    let name_width = names.max().unwrap_or(0);
    let values = loaded.settings.iter().map(|setting| setting.value.chars().count());
    let value_width = values.filter(|width| *width <= WIDEST_VALUE).max().unwrap_or(0);
    let mut section = "";
    for setting in &loaded.settings {
        let (of, name) = split(setting);
        if of != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            section = of;
            line(&mut text, format_args!("{gap}[{section}]"));
        }
        let (value, origin) = (&setting.value, &setting.origin);
        line(&mut text, format_args!("  {name:name_width$}  {value:value_width$}  {origin}"));
    }
    let config = &loaded.config;
    line(&mut text, format_args!("\nceilings: {}", ceilings(&config.ceilings, &config.upstream)));
    if let Some(fleet) = &config.fleet {
        line(&mut text, format_args!("shared with: {}", fleet.shared_ceiling()));
    }
    for warning in loaded.warnings() {
        line(&mut text, format_args!("warning: {warning}"));
    }
    precedence(&mut text);
    text
}

/// What decides the meaning of an answer, in the order in which it does.
fn precedence(text: &mut String) {
    line(
        text,
        format_args!(
            "\nwhat an answer of the provider means; the first rule that applies decides:"
        ),
    );
    let width = PRECEDENCE.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    for (number, (what, means)) in (1..).zip(PRECEDENCE) {
        line(text, format_args!("  {number}. {what:width$}  {means}"));
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    if text.write_fmt(content).is_ok() {
        text.push('\n');
    }
}

/// Section and name.
fn split(setting: &Setting) -> (&str, &str) {
    // Keys of a table belong to the key that the table is one of.
    let own = setting.key.split('[').next().unwrap_or_default();
    let dot = own.rfind('.').and_then(|dot| setting.key.split_at_checked(dot));
    dot.map_or(("", &*setting.key), |(section, name)| (section, name.trim_start_matches('.')))
}

/// Which of the ceilings is the one that is met first.
fn ceilings(ceilings: &Ceilings, upstream: &Upstream) -> String {
    // Without a list, the system chooses one address.
    let addresses = upstream.egress_addresses.len().max(1) as u64;
    let plural = if addresses == 1 { "address" } else { "addresses" };
    let account = ceilings.account.map(u64::from);
    let egress_ip = ceilings.egress_ip.map(u64::from);
    let egress = egress_ip.map(|each| each.saturating_mul(addresses));
    let mut parts = Vec::new();
    if let Some(account) = account {
        parts.push(format!("account {} calls/s", grouped(account)));
    }
    if let (Some(each), Some(all)) = (egress_ip, egress) {
        let (each, all) = (grouped(each), grouped(all));
        parts.push(format!("{addresses} egress {plural} x {each} = {all} calls/s"));
    }
    parts.push(match (account, egress) {
        (None, None) => "no ceiling: both are \"none\"".to_owned(),
        (Some(account), Some(egress)) if egress < account => {
            format!("binding: egress {plural}, {} calls/s", grouped(egress))
        }
        (Some(account), _) => format!("binding: account, {} calls/s", grouped(account)),
        (None, Some(egress)) => {
            format!("binding: egress {plural}, {} calls/s", grouped(egress))
        }
    });
    parts.join("; ")
}
