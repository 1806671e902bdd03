//! The key of the provider's command line: a profile of `~/.aliyun/config.json`, or of the SDKs' ini file.

mod ini;
mod json;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::boxed::BoxedSource;
use super::ecs::MetadataKeys;
use super::error::KeyError;
use super::fixed::FixedKey;
use super::key::Key;
use super::oidc::OidcKeys;
use super::proof::{read_blocking, read_text};
use super::role::AssumedRole;
use super::source::{Pace, Source};
use crate::config::{self, CliFile, CliFiles, EcsMetadata, RoleSession};

/// A file with hundreds of profiles is smaller.
const MAX_FILE: u16 = u16::MAX;
/// How often a profile with a lasting key is read again.
const POLL: Duration = Duration::from_secs(10);

/// What a profile says, whichever file it stands in.
pub(super) enum Profile {
    Lasting { id: String, secret: SecretString, token: Option<SecretString> },
    Role { base: Box<Self>, role: ProfileRole },
    Oidc { provider_arn: String, token_file: PathBuf, role: ProfileRole },
    Machine { role: Option<String> },
}

/// The role of a profile.
pub(super) struct ProfileRole {
    pub(super) arn: String,
    pub(super) name: Option<String>,
    pub(super) seconds: Option<u64>,
    pub(super) policy: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) sts_region: Option<String>,
    pub(super) vpc: bool,
}

/// Files of profiles, the first that exists.
pub struct CliProfiles {
    config: CliFiles,
    /// That of the profile which was read last.
    pace: Pace,
    /// The file which was read last.
    read: Option<PathBuf>,
}

impl CliProfiles {
    /// Nothing is read yet.
    pub fn new(config: &CliFiles) -> Self {
        Self { config: config.clone(), pace: Pace::BeforeExpiry, read: None }
    }

    async fn profile(&self) -> Result<(PathBuf, Profile), KeyError> {
        let config = self.config.clone();
        read_blocking(&self.first(), move || read(&config)).await
    }

    fn first(&self) -> PathBuf {
        self.config.files.first().map(|(_, path)| path.clone()).unwrap_or_default()
    }

    fn source(&self, profile: Profile) -> Result<BoxedSource, KeyError> {
        Ok(match profile {
            Profile::Lasting { id, secret, token } => {
                BoxedSource::new(FixedKey(Some(Key::new(id, secret, token, None)?)))
            }
            Profile::Role { base, role } => {
                let base = self.source(*base)?;
                let sts = self.sts(&role);
                BoxedSource::new(AssumedRole::new(base, &sts, self.session(role))?)
            }
            Profile::Oidc { provider_arn, token_file, role } => {
                let sts = self.sts(&role);
                let session = self.session(role);
                let role = config::OidcRole { provider_arn, token_file, session, sts };
                BoxedSource::new(OidcKeys::new(&role)?)
            }
            Profile::Machine { role } => {
                let config = EcsMetadata { role, ..self.config.ecs.clone() };
                BoxedSource::new(MetadataKeys::new(&config)?)
            }
        })
    }

    /// What the configuration says holds over the profile.
    fn sts(&self, role: &ProfileRole) -> config::Endpoint {
        self.config.sts.endpoint(role.sts_region.as_deref(), role.vpc)
    }

    fn session(&self, role: ProfileRole) -> RoleSession {
        RoleSession {
            role_arn: role.arn,
            name: role.name.unwrap_or_else(|| self.config.session_name.clone()),
            duration: role.seconds.map_or(self.config.session_duration, Duration::from_secs),
            policy: role.policy,
            external_id: role.external_id,
        }
    }
}

impl Source for CliProfiles {
    fn as_str(&self) -> &'static str {
        "cli"
    }

    fn place(&self) -> String {
        self.read.clone().unwrap_or_else(|| self.first()).display().to_string()
    }

    fn pace(&self) -> Pace {
        self.pace
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        let (path, profile) = self.profile().await?;
        self.read = Some(path.clone());
        let pace = match profile {
            Profile::Lasting { .. } => Pace::Every(POLL),
            _ => Pace::BeforeExpiry,
        };
        let key = self.source(profile)?.load().await.map_err(|error| match error {
            // The profile is there: that what it names is not is a failure.
            KeyError::Absent(why) => KeyError::File { path, why },
            other => other,
        })?;
        self.pace = pace;
        Ok(key)
    }
}

/// The first file that exists, and its profile. Blocks.
fn read(config: &CliFiles) -> Result<(PathBuf, Profile), KeyError> {
    let mut found = None;
    for (kind, path) in &config.files {
        // One that cannot be looked at may have the key that is meant. Below what is no folder, there is none.
        let exists = path.try_exists().or_else(|error| match error.kind() {
            io::ErrorKind::NotADirectory => Ok(false),
            _ => Err(error),
        });
        let failed =
            |error: io::Error| KeyError::File { path: path.clone(), why: error.to_string() };
        if exists.map_err(failed)? {
            found = Some((kind, path));
            break;
        }
    }
    let Some((kind, path)) = found else {
        let names: Vec<_> = config.files.iter().map(|(_, path)| shown(path)).collect();
        let others = names.get(1..).unwrap_or_default();
        let others = if others.is_empty() {
            String::new()
        } else {
            format!(", nor does {}", others.join(", "))
        };
        let first = names.first().map_or("", String::as_str);
        return Err(KeyError::Absent(format!("{first}: does not exist{others}")));
    };
    let profile = read_text(path, MAX_FILE).and_then(|text| match kind {
        CliFile::Json => json::profile(&text, config.profile.as_deref()),
        CliFile::Ini => ini::profile(&text, config.profile.as_deref()),
    });
    match profile {
        Ok(profile) => Ok((path.clone(), profile)),
        Err(why) => Err(KeyError::File { path: path.clone(), why }),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::{Endpoint, MetadataV1, StsService};

    const AK: &str = r#"{"current":"a","profiles":[{"name":"a","mode":"AK","access_key_id":"LTAI-of-this-test","access_key_secret":"hush"}]}"#;

    const MACHINE: &str =
        r#"{"current":"a","profiles":[{"name":"a","mode":"EcsRamRole","ram_role_name":""}]}"#;

    /// Only what is known not to be there lets the next file, and with "auto" the next source, take its place.
    #[tokio::test]
    async fn a_file_that_cannot_be_looked_at_is_not_absent() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        symlink("loop", path("loop")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        fs::write(path("config.json"), AK).unwrap();
        fs::write(path("machine.json"), MACHINE).unwrap();
        for (first, expected) in [
            ("absent", None),
            ("absent/config.json", None),
            ("dangling", None),
            // As with HOME=/dev/null.
            ("config.json/config.json", None),
            // The machine's role, and no metadata service.
            ("machine.json", Some("127.0.0.1:1")),
            // As a home folder that is another user's.
            ("loop/config.json", Some("symbolic links")),
        ] {
            for next in ["absent", "config.json"] {
                let files = [first, next].map(|name| (CliFile::Json, path(name)));
                let endpoint = Endpoint { tls: false, host: "127.0.0.1".to_owned(), port: 1 };
                let mut profiles = CliProfiles::new(&CliFiles {
                    files: files.to_vec(),
                    profile: None,
                    session_name: "tollgate".to_owned(),
                    session_duration: Duration::from_hours(1),
                    sts: StsService::default(),
                    ecs: EcsMetadata { role: None, endpoint, v1: MetadataV1::Refused },
                });
                match (profiles.load().await, expected) {
                    (Ok(key), None) => {
                        assert_eq!((key.id(), next), ("LTAI-of-this-test", "config.json"));
                    }
                    (Err(KeyError::Absent(why)), None) => {
                        assert_eq!(next, "absent");
                        assert!(why.contains(first), "{why}");
                    }
                    (Err(KeyError::File { path: of, why }), Some(expected)) => {
                        assert_eq!(of, path(first));
                        assert!(why.contains(expected), "{why}");
                    }
                    (other, _) => panic!("{first}, {next}: {other:?}"),
                }
            }
        }
    }
}
