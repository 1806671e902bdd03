//! Checks of single values that more than one section has, or that need more than a range.

use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::error::ValueError;
use super::parse::Raw;
use crate::message::{InstanceId, TopicPattern};

/// The shortest duration that is not an error: a bound of nothing lets nothing happen.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
/// More than any process may have open.
pub(super) const MOST_CONNECTIONS: usize = 65_536;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A path that could name something.
pub(super) fn path(raw: &Raw) -> Result<PathBuf, ValueError> {
    let text = raw.text()?;
    if text.is_empty() || text.contains(char::is_control) {
        return Err(ValueError::new("is not a path", "write the path of a file or folder"));
    }
    Ok(PathBuf::from(text))
}

/// What `read` makes of the text; nothing where that is empty.
pub(super) fn or_empty<T: Default>(
    raw: &Raw,
    read: impl FnOnce(&Raw) -> Result<T, ValueError>,
) -> Result<T, ValueError> {
    if raw.text()?.is_empty() { Ok(T::default()) } else { read(raw) }
}

/// A path, or none where the text is empty.
pub(super) fn optional_path(raw: &Raw) -> Result<Option<PathBuf>, ValueError> {
    or_empty(raw, |raw| path(raw).map(Some))
}

/// Such as `post-cn-0pp12gl0000`; text even where it looks like a number.
pub(super) fn instance_id(raw: &Raw) -> Result<InstanceId, ValueError> {
    let text = raw.text()?;
    let is_id = (1..=64).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    is_id.then(|| text.into()).ok_or_else(|| {
        ValueError::new(
            "is not an instance id",
            "write 1 to 64 of A-Z a-z 0-9 - _, as in post-cn-0pp12gl0000",
        )
    })
}

/// A pattern that at least one topic could match.
pub(super) fn pattern(raw: &Raw) -> Result<TopicPattern, ValueError> {
    let text = raw.text()?;
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '*' | '@');
    let remedy = "use letters, digits, - _ / and *, which stands for anything: \"Alarm/*\"";
    match text.chars().find(|c| !is_fit(*c)) {
        _ if text.is_empty() => Err(ValueError::new("is empty and matches no topic", remedy)),
        Some('+' | '#') => {
            Err(ValueError::new("is an MQTT filter; patterns here have neither + nor #", remedy))
        }
        Some(c) => Err(ValueError::new(format!("has {c:?}, which no topic has"), remedy)),
        None => Ok(TopicPattern::new(text)),
    }
}

/// A level or tracing's directives. A bare word that is no level would be taken for a module's
/// name, so that `inof` would silence everything.
pub(super) fn level(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let remedy =
        || format!("write one of {}, or directives such as \"info,hyper=warn\"", LEVELS.join(", "));
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let stray = text
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains(['=', '[', ']', '{', '}']) && !is_level(part));
    if let Some(stray) = stray {
        return Err(ValueError::new(format!("has {stray:?}, which is not a level"), remedy()));
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(ValueError::new("is neither a level nor directives", remedy())),
    }
}
