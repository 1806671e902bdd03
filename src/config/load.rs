//! From the file, the environment and the flags to one configuration, or to all its errors.

use std::collections::BTreeMap;
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use sha2::{Digest, Sha256};

use super::error::{ConfigError, ConfigErrors, ValueError};
use super::file::ConfigFile;
use super::origin::Origin;
use super::parse::Raw;
use super::read::{Given, Reader};
use super::sections::rows;
use super::setting::Setting;
use super::unknown::{KnownKeys, shown_unknown};
use super::warnings::{Warning, warnings};
use super::{Config, sections};

/// Two underscores: Kubernetes itself puts `TOLLGATE_PORT` and the like into every pod beside a
/// Service of that name.
const PREFIX: &str = "TOLLGATE__";
/// Variables of the provider's own tools, the key that each stands for, and the sources for which it does.
/// Elsewhere a variable may well be there for another program.
const VARIABLES: [(&str, &str, &[&str]); 9] = [
    ("ALIBABA_CLOUD_CREDENTIALS_URI", "keys.uri", &["uri", "auto"]),
    ("ALIBABA_CLOUD_ROLE_ARN", "keys.oidc_role_arn", &["oidc", "auto"]),
    ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "keys.oidc_provider_arn", &["oidc", "auto"]),
    ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", "keys.oidc_token_file", &["oidc", "auto"]),
    ("ALIBABA_CLOUD_ROLE_SESSION_NAME", "keys.role_session_name", &["oidc", "role", "auto"]),
    ("ALIBABA_CLOUD_STS_REGION", "keys.sts_region", &["oidc", "role", "cli", "auto"]),
    ("ALIBABA_CLOUD_ECS_METADATA", "keys.ecs_role", &["ecs", "auto"]),
    ("ALIBABA_CLOUD_CREDENTIALS_FILE", "keys.cli_credentials", &["cli", "auto"]),
    ("ALIBABA_CLOUD_PROFILE", "keys.cli_profile", &["cli", "auto"]),
];
/// "true" in it asks for the service within the VPC.
const STS_VPC: &str = "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED";

/// A valid configuration, and where each value came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values, for the modules that use them.
    pub config: Config,
    /// The same as text, for people, in the order of the documentation.
    pub settings: Vec<Setting>,
    pub(super) given: Given,
    overridden: Vec<Warning>,
}

impl Loaded {
    /// What is valid, and its operator should know about: insecure values, and those of the file that a
    /// variable overrides.
    pub fn warnings(&self) -> Vec<Warning> {
        self.overridden.iter().cloned().chain(warnings(&self.config)).collect()
    }

    /// A number of these values, below 2^48 so that a metric has it exactly. Equal where all values are
    /// equal as they are shown, that is without secrets.
    pub fn hash(&self) -> u64 {
        let mut hash = Sha256::new();
        for setting in &self.settings {
            hash.update(format!("{}={}\n", setting.key, setting.value));
        }
        let digest = hash.finalize();
        digest.iter().take(6).fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }
}

/// Reads the file, then the environment, then the flags (key and value), later ones over earlier
/// ones, and checks everything.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<Loaded, ConfigErrors> {
    load_file(file.map(ConfigFile::read).as_ref(), env, flags)
}

/// Like [`load`], with a file that was read already: what is checked for changes is then what holds,
/// and a pipe, which can be read once, is a file, too.
pub fn load_file(
    file: Option<&ConfigFile>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<Loaded, ConfigErrors> {
    load_over(&[], file, env, flags)
}

/// Like [`load_file`], over values that hold where nothing else does.
pub(super) fn load_over(
    defaults: &[(String, String)],
    file: Option<&ConfigFile>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<Loaded, ConfigErrors> {
    let mut sources = Sources::none();
    for (key, value) in defaults {
        sources.text(key, value, Origin::Default);
    }
    let is_readable = file.is_none_or(|file| sources.file(file));
    sources.environment(env);
    for (key, value) in flags {
        sources.text(key, value, Origin::Flag(key.clone()));
    }
    sources.fall_back();

    let given = sources.given();
    let mut reader = Reader::new(&given);
    let config = sections::config(&mut reader);
    if !is_readable {
        // What is missing may well stand in the file that could not be read.
        reader.errors.retain(|error| error.origin != Origin::Default);
    }
    let mut errors = sources.errors;
    errors.append(&mut reader.errors);
    let settings = reader.settings;
    match config {
        Some(config) if errors.is_empty() => {
            Ok(Loaded { config, settings, given, overridden: sources.overridden })
        }
        _ => Err(ConfigErrors(errors)),
    }
}

/// Every key, in the order of the documentation.
pub fn keys() -> Vec<&'static str> {
    rows().map(|row| row.name).collect()
}

/// What was given, merged; a source is searched for unknown keys before it goes in, while it still
/// stands alone.
struct Sources {
    known: KnownKeys,
    merged: Figment,
    errors: Vec<ConfigError>,
    overridden: Vec<Warning>,
    /// Of [`VARIABLES`] and [`STS_VPC`], those that are not empty.
    provider: BTreeMap<&'static str, String>,
}

impl Sources {
    fn none() -> Self {
        let known = KnownKeys(keys());
        let (errors, overridden) = (Vec::new(), Vec::new());
        let provider = BTreeMap::new();
        Self { known, merged: Figment::new(), errors, overridden, provider }
    }

    /// Whether the file could be read, right or wrong.
    fn file(&mut self, file: &ConfigFile) -> bool {
        let origin = Origin::File(file.origin());
        let profiles = match file.text() {
            Ok(text) => Toml::string(text).data().map_err(|error| unreadable(&error.to_string())),
            Err(error) => Err(unreadable(error)),
        };
        match profiles {
            Ok(mut profiles) => {
                let dict = profiles.remove(&Profile::Default).unwrap_or_default();
                self.known.search(&dict, "", &origin, &mut self.errors);
                self.merge(dict, &origin);
                true
            }
            Err(ValueError { problem, remedy }) => {
                let (key, value) = (String::new(), None);
                self.errors.push(ConfigError { origin, key, value, problem, remedy });
                false
            }
        }
    }

    fn environment(&mut self, env: impl IntoIterator<Item = (String, String)>) {
        // Sorted, so that the same environment always gives the same answer.
        let mut variables = BTreeMap::new();
        for (name, value) in env {
            let mut known = VARIABLES.iter().map(|(variable, ..)| *variable).chain([STS_VPC]);
            if let Some(variable) = known.find(|variable| *variable == name) {
                // Manifests often set a variable to nothing instead of leaving it away.
                if !value.trim().is_empty() {
                    self.provider.insert(variable, value);
                }
            } else if name.starts_with(PREFIX) {
                variables.insert(name, value);
            }
        }
        let mut seen = BTreeMap::new();
        for (name, value) in variables {
            let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
            let origin = Origin::Environment(name.clone());
            if let Some(first) = seen.insert(key.clone(), name) {
                let problem = format!("is given twice, also as {first}");
                let remedy = "keep one of the variables".to_owned();
                let value = shown_unknown(&key, &Value::from(value));
                self.errors.push(ConfigError { origin, key, value, problem, remedy });
            } else {
                self.overrides(&key, &value, &origin);
                self.text(&key, &value, origin);
            }
        }
    }

    /// Who sets a key in the file need not know of the variables that manifests set.
    fn overrides(&mut self, key: &str, variable: &str, origin: &Origin) {
        let Some(row) = rows().find(|row| row.name == key) else { return };
        let Ok(in_file) = self.merged.find_value(key) else { return };
        let is_from_file = self
            .merged
            .get_metadata(in_file.tag())
            .is_some_and(|metadata| matches!(Origin::of(metadata), Origin::File(_)));
        if is_from_file && written(&in_file).as_deref() != Some(variable.trim()) {
            self.overridden.push(Warning {
                key: row.name,
                problem: format!("has no effect as the file sets it: {origin} holds"),
                remedy: "leave it out of the file, or the variable out of the manifest",
            });
        }
    }

    /// Takes values from the provider's own variables, where the source uses them and nothing else gives
    /// one.
    fn fall_back(&mut self) {
        let word = |key: &str| {
            let found = self.merged.find_value(key).ok()?;
            found.as_str().map(str::to_owned)
        };
        let source = word("keys.source").unwrap_or_default();
        let base =
            if source == "role" { word("keys.base").unwrap_or_default() } else { String::new() };
        let sources = [source.as_str(), base.as_str()];
        for (variable, key, of) in VARIABLES {
            let is_used = sources.iter().any(|source| of.contains(source));
            if is_used
                && !self.merged.contains(key)
                && let Some(value) = self.provider.remove(variable)
            {
                self.text(key, &value, Origin::Environment(variable.to_owned()));
            }
        }
        let vpc =
            self.provider.get(STS_VPC).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let uses_sts =
            sources.iter().any(|source| ["oidc", "role", "cli", "auto"].contains(source));
        if vpc && uses_sts && !self.merged.contains("keys.sts_vpc") {
            self.text("keys.sts_vpc", "true", Origin::Environment(STS_VPC.to_owned()));
        }
    }

    /// A value from the environment or a flag: text, whatever it looks like.
    fn text(&mut self, key: &str, value: &str, origin: Origin) {
        let value = Value::from(value.trim());
        match self.known.check(key) {
            Ok(()) => {
                let nested = figment::util::nest(key, value);
                if let Some(dict) = nested.into_dict() {
                    self.merge(dict, &origin);
                }
            }
            Err(ValueError { problem, remedy }) => {
                let (value, key) = (shown_unknown(key, &value), key.escape_debug().to_string());
                self.errors.push(ConfigError { origin, key, value, problem, remedy });
            }
        }
    }

    fn given(&self) -> Given {
        let raw = |key: &str| {
            let value = self.merged.find_value(key).ok()?;
            let metadata = self.merged.get_metadata(value.tag());
            Some(Raw { value, origin: metadata.map_or(Origin::Default, Origin::of) })
        };
        Given(rows().filter_map(|row| Some((row.name, raw(row.name)?))).collect())
    }

    fn merge(&mut self, dict: Dict, origin: &Origin) {
        let source = Fetched { dict, metadata: origin.metadata() };
        self.merged = std::mem::take(&mut self.merged).merge(source);
    }
}

/// A single value as a variable would have it.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, is_so) => Some(is_so.to_string()),
        Value::Num(_, number) => number.to_i128().map(|number| number.to_string()),
        _ => None,
    }
}

/// A source that was read already.
struct Fetched {
    dict: Dict,
    metadata: Metadata,
}

impl Provider for Fetched {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Why a file could not be read, from what the TOML reader says. That quotes the line it stumbled
/// over, which may hold a secret: only the place and the reason are kept.
fn unreadable(report: &str) -> ValueError {
    let mut lines = report.lines();
    let first = lines.next().unwrap_or_default();
    match first.strip_prefix("TOML parse error at ") {
        Some(place) => {
            let reason: Vec<_> = lines.skip(3).collect();
            let problem = format!("is not TOML, at {place}: {}", reason.join(", "));
            ValueError::new(problem, "correct this line")
        }
        None => ValueError::new(
            format!("cannot be read: {first}"),
            "check the path, and that this user may read the file",
        ),
    }
}
