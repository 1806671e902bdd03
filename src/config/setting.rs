//! One value that holds, where it came from, and how it is shown.

use figment::value::Value;

use super::origin::Origin;
use super::uri;

/// Longer values are cut where they are shown.
const MAX_SHOWN: usize = 200;

/// One key with the value that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Such as `publish.wait`.
    pub key: String,
    /// As it was written, without secrets.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A value as it may be shown: no secrets, one line, not endless.
pub(super) fn show(key: &str, value: &Value) -> String {
    let text = match value {
        Value::String(_, text) => shown_text(key, text),
        Value::Array(_, items) => {
            let items: Vec<_> = items.iter().map(|item| show(key, item)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Dict(_, entries) if entries.is_empty() => "{}".to_owned(),
        Value::Dict(..) => "{ … }".to_owned(),
        Value::Bool(_, value) => value.to_string(),
        Value::Char(_, value) => value.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_f64()) {
            (Some(number), _) => number.to_string(),
            (None, Some(number)) => number.to_string(),
            (None, None) => "a number".to_owned(),
        },
        Value::Empty(..) => String::new(),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn shown_text(key: &str, text: &str) -> String {
    let is_uri = matches!(
        key,
        "keys.uri"
            | "upstream.endpoint"
            | "upstream.proxy"
            | "fleet.url"
            | "telemetry.otlp.endpoint"
    ) || text.contains("://");
    let text = if is_uri { uri::mask(text) } else { text.to_owned() };
    // A terminal must not act on what a value holds.
    let plain = !text.is_empty() && !text.contains(char::is_control);
    if plain { text } else { format!("{text:?}") }
}

/// A number with its thousands apart: 1,000.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
