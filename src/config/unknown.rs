//! Keys that nobody reads are mistakes, never ignored.

use figment::value::{Dict, Value};

use super::error::{ConfigError, ValueError};
use super::parse::kind;
use super::setting::{Origin, show};

/// Keys and sections that tollgate will have, so that nobody looks for a misspelling.
const LATER: &[&str] = &["keys.canary", "keys.canary_for"];

/// The keys that are read.
pub(super) struct Known<'a>(pub(super) &'a [String]);

impl Known<'_> {
    /// What is wrong with a whole key, such as `publish.wait`, if anything.
    pub(super) fn judge(&self, key: &str) -> Result<(), ValueError> {
        if self.0.iter().any(|known| known == key) {
            return Ok(());
        }
        let is_later = LATER.iter().any(|later| {
            key.strip_prefix(later).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if is_later {
            return Err(ValueError::new(
                "comes with a later release of tollgate",
                "leave it out until then",
            ));
        }
        let name = key.rsplit('.').next().unwrap_or(key);
        let elsewhere = || {
            self.0.iter().find(|known| known.rsplit('.').next() == Some(name)).map(String::as_str)
        };
        let near = nearest(key, self.0.iter().map(String::as_str)).or_else(elsewhere);
        Err(ValueError::new(
            "is not a key of tollgate",
            match near {
                Some(near) => format!("did you mean {near}?"),
                None => "leave it out, or see `tollgate check` for all keys".to_owned(),
            },
        ))
    }

    /// Looks through a whole source, section by section.
    pub(super) fn search(
        &self,
        dict: &Dict,
        within: &str,
        origin: &Origin,
        mistakes: &mut Vec<ConfigError>,
    ) {
        for (name, value) in dict {
            // A quoted name with a dot in it is not the key that it looks like.
            let is_quoted = name.is_empty() || name.contains(|c: char| c == '.' || c.is_control());
            let name = if is_quoted { format!("{name:?}") } else { name.clone() };
            let key = if within.is_empty() { name } else { format!("{within}.{name}") };
            let wrong = match (self.is_section(&key), value) {
                (true, Value::Dict(_, inner)) => {
                    self.search(inner, &key, origin, mistakes);
                    continue;
                }
                (true, other) => {
                    let problem = format!("is {}, and must be a section", kind(other));
                    ValueError::new(
                        problem,
                        format!("write [{key}] on a line, and its keys below it"),
                    )
                }
                (false, Value::Dict(..)) if within.is_empty() => self.unknown_section(&key),
                (false, _) => match self.judge(&key) {
                    Ok(()) => continue,
                    Err(wrong) => wrong,
                },
            };
            let value = shown_unknown(&key, value);
            let (problem, remedy) = (wrong.problem, wrong.remedy);
            mistakes.push(ConfigError { origin: origin.clone(), key, value, problem, remedy });
        }
    }

    fn is_section(&self, key: &str) -> bool {
        self.0.iter().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    fn unknown_section(&self, section: &str) -> ValueError {
        if LATER.contains(&section) {
            return ValueError::new(
                "comes with a later release of tollgate",
                "leave it out until then",
            );
        }
        let sections = self.0.iter().filter_map(|key| key.split('.').next());
        let remedy = match nearest(section, sections) {
            Some(near) => format!("did you mean [{near}]?"),
            None => "leave it out, or see `tollgate check` for all sections".to_owned(),
        };
        ValueError::new("is not a section of tollgate", remedy)
    }
}

/// The value of a key that nobody knows. People put keys and passwords into files under names of
/// their own, and a mistake is printed and logged: so only what can hold none is shown.
pub(super) fn shown_unknown(key: &str, value: &Value) -> Option<String> {
    const SECRET: [&str; 6] = ["key", "secret", "token", "password", "credential", "auth"];
    let name = key.to_ascii_lowercase();
    match value {
        Value::Dict(..) => None,
        _ if SECRET.iter().any(|word| name.contains(word)) => Some("***".to_owned()),
        _ => Some(show(key, value)),
    }
}

/// The candidate that a word was probably meant to be.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let length = word.chars().count();
    candidates
        .filter(|candidate| candidate.len().abs_diff(length) <= 2)
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= 2 && *distance * 2 <= length)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, row by row; a swap of neighbours costs 2.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let change = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[right.len()]
}
