//! Keys that are not in the table are errors, never ignored.

use figment::value::{Dict, Value};

use super::error::{ConfigError, ValueError};
use super::nearest::nearest;
use super::origin::Origin;
use super::parse::kind;
use super::setting::show;

/// The keys of the table.
pub(super) struct KnownKeys(pub(super) Vec<&'static str>);

impl KnownKeys {
    /// What is wrong with a whole key, such as `publish.wait`, if anything.
    pub(super) fn check(&self, key: &str) -> Result<(), ValueError> {
        if self.0.contains(&key) {
            return Ok(());
        }
        let name = key.rsplit('.').next().unwrap_or(key);
        let elsewhere =
            || self.0.iter().copied().find(|known| known.rsplit('.').next() == Some(name));
        let near = nearest(key, self.0.iter().copied()).or_else(elsewhere);
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
        errors: &mut Vec<ConfigError>,
    ) {
        for (name, value) in dict {
            // A quoted name with a dot in it is not the key that it looks like.
            let is_quoted = name.is_empty() || name.contains(|c: char| c == '.' || c.is_control());
            let name = if is_quoted { format!("{name:?}") } else { name.clone() };
            let key = if within.is_empty() { name } else { format!("{within}.{name}") };
            let wrong = match (self.is_section(&key), value) {
                (true, Value::Dict(_, inner)) => {
                    self.search(inner, &key, origin, errors);
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
                (false, _) => match self.check(&key) {
                    Ok(()) => continue,
                    Err(wrong) => wrong,
                },
            };
            let value = shown_unknown(&key, value);
            let (problem, remedy) = (wrong.problem, wrong.remedy);
            errors.push(ConfigError { origin: origin.clone(), key, value, problem, remedy });
        }
    }

    fn is_section(&self, key: &str) -> bool {
        self.0.iter().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    fn unknown_section(&self, section: &str) -> ValueError {
        let sections = self.0.iter().filter_map(|key| key.split('.').next());
        let remedy = match nearest(section, sections) {
            Some(near) => format!("did you mean [{near}]?"),
            None => "leave it out, or see `tollgate check` for all sections".to_owned(),
        };
        ValueError::new("is not a section of tollgate", remedy)
    }
}

/// The value of an unknown key. Operators put keys and passwords into files under names of their
/// own, and an error is printed and logged: so only what can hold no secret is shown.
pub(super) fn shown_unknown(key: &str, value: &Value) -> Option<String> {
    const SECRET: [&str; 6] = ["key", "secret", "token", "password", "credential", "auth"];
    let name = key.to_ascii_lowercase();
    match value {
        Value::Dict(..) => None,
        _ if SECRET.iter().any(|word| name.contains(word)) => Some("***".to_owned()),
        _ => Some(show(key, value)),
    }
}
