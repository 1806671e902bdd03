//! The rows of `[keys]`.

use std::path::PathBuf;
use std::time::Duration;

use super::checks::{self, HOUR};
use super::error::ValueError;
use super::key_source::{
    Canary, CliFile, CliFiles, EcsMetadata, KeySource, KeyUri, Keys, MetadataV1, OidcRole, RoleOf,
    RoleSession, StsService,
};
use super::parse::Raw;
use super::read::{Reader, boolean, choice, duration, optional, share, value};
use super::table::section;
use super::uri::{self, Endpoint};

/// The shortest and the longest life that the provider gives a role's key.
pub(super) const LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_mins(15)..=Duration::from_hours(12);
/// The longest session policy that the provider takes.
pub(super) const MAX_POLICY: usize = 2_048;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceWord {
    Env,
    File,
    Uri,
    Oidc,
    Role,
    Ecs,
    Cli,
    Auto,
}

const SOURCES: [(&str, SourceWord); 8] = [
    ("env", SourceWord::Env),
    ("auto", SourceWord::Auto),
    ("oidc", SourceWord::Oidc),
    ("file", SourceWord::File),
    ("uri", SourceWord::Uri),
    ("role", SourceWord::Role),
    ("ecs", SourceWord::Ecs),
    ("cli", SourceWord::Cli),
];
/// Whose key may assume a role.
const BASES: [(&str, SourceWord); 7] = [
    ("env", SourceWord::Env),
    ("auto", SourceWord::Auto),
    ("oidc", SourceWord::Oidc),
    ("file", SourceWord::File),
    ("uri", SourceWord::Uri),
    ("ecs", SourceWord::Ecs),
    ("cli", SourceWord::Cli),
];

section! {
    pub(super) struct KeyRows [keys] {
        /// Where the key comes from (docs/keys.md):
        ///   "env"   ALIBABA_CLOUD_ACCESS_KEY_ID, ALIBABA_CLOUD_ACCESS_KEY_SECRET and, for a temporary key,
        ///           ALIBABA_CLOUD_SECURITY_TOKEN
        ///   "auto"  the first that is set up, in the order of the provider's SDKs: env, oidc, cli, ecs, uri
        ///   "oidc"  RRSA: a role for the service account of the pod. No key is stored anywhere
        ///   "file"  a folder with a file for each part, as Kubernetes mounts a Secret; followed when changed
        ///   "uri"   a URI that answers with a temporary key, such as that of `tollgate keyring`
        ///   "role"  a role that the key of another source assumes
        ///   "ecs"   the role of the machine, from its metadata service
        ///   "cli"   a profile of ~/.aliyun/config.json, or of the SDKs' ini file
        source: SourceWord = "env", choice(&SOURCES);

        /// The share of calls that try a new key first, where the key does not say when it ends, and for how
        /// long at least. If the provider refuses it meanwhile, tollgate goes on with the old one, and the
        /// refused calls are made again. 1: a new key is used at once.
        canary: f64 = 0.01, share();
        canary_for: Duration = "30s", duration(Duration::ZERO..=HOUR);

        /// For "file": the folder, and how often tollgate compares its contents.
        path: PathBuf = "/var/run/secrets/tollgate", value(checks::path);
        poll: Duration = "2s", duration(Duration::from_millis(10)..=HOUR);

        /// For "uri": the URI, http or https. If it is not set, tollgate uses the variable
        /// ALIBABA_CLOUD_CREDENTIALS_URI.
        uri: Option<String> => Example "http://127.0.0.1:8900/credentials",
            optional(|raw| uri::credentials(raw.text()?));

        /// For "uri": a file with a token that proves who asks, sent as `Authorization: Bearer` and read again
        /// each time; and a file with the authorities of an https URI, besides the bundled and the system's.
        uri_token_file: Option<PathBuf> => Example "/var/run/secrets/tollgate-keyring/token", optional(checks::path);
        uri_ca_file: Option<PathBuf> => Example "/etc/tollgate/keyring-ca.pem", optional(checks::path);

        /// For "oidc": the role, the OIDC provider of the cluster, and the file with the token. Where they are
        /// not set, tollgate uses what RRSA injects: ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN
        /// and ALIBABA_CLOUD_OIDC_TOKEN_FILE.
        oidc_role_arn: Option<String> => Example "acs:ram::1234567890123456:role/tollgate", optional(arn);
        oidc_provider_arn: Option<String>
            => Example "acs:ram::1234567890123456:oidc-provider/ack-rrsa-c1234", optional(arn);
        oidc_token_file: Option<PathBuf>
            => Example "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens/token", optional(checks::path);

        /// For "role": the role, the source whose key assumes it, and what a role of another account may
        /// ask for.
        role_arn: Option<String> => Example "acs:ram::1234567890123456:role/tollgate", optional(arn);
        base: SourceWord = "env", choice(&BASES);
        external_id: Option<String> => Example "tollgate", optional(external_id);

        /// For "oidc" and "role": the name of the session in the provider's audit log, how long the key is to
        /// live (at most what the role allows), and a policy as JSON that narrows what it may do.
        role_session_name: String = "tollgate", value(session_name);
        session_duration: Duration = "1h", duration(LIFE);
        policy: Option<String>
            => Example "{\"Version\":\"1\",\"Statement\":[{\"Effect\":\"Allow\",\"Action\":\"mq:SendMessage\",\"Resource\":\"*\"}]}",
            optional(policy);

        /// The Security Token Service: in which region it is asked (if it is not set, that of
        /// upstream.endpoint), whether within the VPC, and another endpoint, which wins over both.
        sts_region: Option<String> => Example "cn-hangzhou", optional(region);
        sts_vpc: bool = false, boolean();
        sts_endpoint: Option<Endpoint> => Example "https://sts.cn-hangzhou.aliyuncs.com",
            optional(|raw| uri::endpoint(raw.text()?));

        /// For "ecs": the role (if it is not set, the one that the service names), where the metadata service
        /// is, and whether it may be asked without a token (version 1) where it gives none.
        ecs_role: Option<String> => Example "tollgate", optional(word);
        ecs_endpoint: Endpoint = "http://100.100.100.200", value(|raw| uri::endpoint(raw.text()?));
        ecs_v1: bool = false, boolean();

        /// For "cli": the files, the first that exists, and the profile (if it is not set, the current one, or
        /// "default"). ~ is the home folder of this user.
        cli_config: PathBuf = "~/.aliyun/config.json", value(home_path);
        cli_credentials: PathBuf = "~/.alibabacloud/credentials.ini", value(home_path);
        cli_profile: Option<String> => Example "default", optional(profile);
    }
    check source_is_complete(
        source, base, uri, role_arn, oidc_role_arn, oidc_provider_arn, oidc_token_file
    );
}

type Given<'a, T> = Option<&'a Option<T>>;

/// What a source cannot do without.
#[expect(clippy::too_many_arguments, reason = "so many keys are compared")]
fn source_is_complete(
    r: &mut Reader<'_>,
    source: Option<&SourceWord>,
    base: Option<&SourceWord>,
    uri: Given<'_, String>,
    role_arn: Given<'_, String>,
    oidc_role_arn: Given<'_, String>,
    oidc_provider_arn: Given<'_, String>,
    oidc_token_file: Given<'_, PathBuf>,
) {
    let (Some(source), Some(base)) = (source, base) else { return };
    let uses = |word| *source == word || *source == SourceWord::Role && *base == word;
    let is_absent = [
        ("keys.uri", SourceWord::Uri, matches!(uri, Some(None)), "ALIBABA_CLOUD_CREDENTIALS_URI"),
        (
            "keys.oidc_role_arn",
            SourceWord::Oidc,
            matches!(oidc_role_arn, Some(None)),
            "ALIBABA_CLOUD_ROLE_ARN",
        ),
        (
            "keys.oidc_provider_arn",
            SourceWord::Oidc,
            matches!(oidc_provider_arn, Some(None)),
            "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
        ),
        (
            "keys.oidc_token_file",
            SourceWord::Oidc,
            matches!(oidc_token_file, Some(None)),
            "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
        ),
    ];
    for (key, word, is_absent, variable) in is_absent {
        if is_absent && uses(word) {
            let name =
                SOURCES.iter().find(|(_, other)| *other == word).map_or("", |(name, _)| name);
            r.conflict(
                key,
                format!("is required where keys.source is {name:?}"),
                format!("set {key} or {variable}"),
            );
        }
    }
    if *source == SourceWord::Role && matches!(role_arn, Some(None)) {
        let problem = "is required where keys.source is \"role\"";
        r.conflict("keys.role_arn", problem, "set keys.role_arn");
    }
}

/// `[keys]`, and the Security Token Service of the keyring.
pub(super) fn keys(r: &mut Reader<'_>) -> Option<(Keys, Endpoint)> {
    let mut rows = KeyRows::read(r)?;
    rows.sts_region = rows.sts_region.or_else(|| region_of_upstream(r));
    if rows.sts_vpc && rows.sts_region.is_none() && rows.sts_endpoint.is_none() {
        let problem = "is true, and no region is known";
        r.conflict("keys.sts_vpc", problem, "set keys.sts_region");
        return None;
    }
    let canary = Canary { share: rows.canary, period: rows.canary_for };
    let source = rows.source(rows.source)?;
    Some((Keys { source, canary }, rows.sts()))
}

impl KeyRows {
    fn source(&self, word: SourceWord) -> Option<KeySource> {
        Some(match word {
            SourceWord::Env => KeySource::Env,
            SourceWord::File => KeySource::File { path: self.path.clone(), poll: self.poll },
            SourceWord::Uri => self.key_uri()?,
            SourceWord::Oidc => self.oidc()?,
            SourceWord::Role => {
                let mut base = self.source(self.base)?;
                if let KeySource::Oidc(oidc) = &mut base {
                    // What it may do is to assume the other role.
                    oidc.session.policy = None;
                }
                let session = self.session(self.role_arn.clone()?);
                let session = RoleSession { external_id: self.external_id.clone(), ..session };
                KeySource::Role(Box::new(RoleOf { base, session, sts: self.sts() }))
            }
            SourceWord::Ecs => KeySource::Ecs(self.ecs()),
            SourceWord::Cli => KeySource::Cli(self.cli(&[CliFile::Json, CliFile::Ini])),
            SourceWord::Auto => {
                let chain = [
                    Some(KeySource::Env),
                    self.oidc(),
                    Some(KeySource::Cli(self.cli(&[CliFile::Json]))),
                    Some(KeySource::Cli(self.cli(&[CliFile::Ini]))),
                    Some(KeySource::Ecs(self.ecs())),
                    self.key_uri(),
                ];
                KeySource::Auto(chain.into_iter().flatten().collect())
            }
        })
    }

    fn key_uri(&self) -> Option<KeySource> {
        Some(KeySource::Uri(KeyUri {
            uri: self.uri.clone()?,
            token_file: self.uri_token_file.clone(),
            ca_file: self.uri_ca_file.clone(),
        }))
    }

    fn oidc(&self) -> Option<KeySource> {
        Some(KeySource::Oidc(OidcRole {
            provider_arn: self.oidc_provider_arn.clone()?,
            token_file: self.oidc_token_file.clone()?,
            session: self.session(self.oidc_role_arn.clone()?),
            sts: self.sts(),
        }))
    }

    fn session(&self, role_arn: String) -> RoleSession {
        RoleSession {
            role_arn,
            name: self.role_session_name.clone(),
            duration: self.session_duration,
            policy: self.policy.clone(),
            external_id: None,
        }
    }

    fn sts_service(&self) -> StsService {
        let (endpoint, region) = (self.sts_endpoint.clone(), self.sts_region.clone());
        StsService { endpoint, region, vpc: self.sts_vpc }
    }

    fn sts(&self) -> Endpoint {
        self.sts_service().endpoint(None, false)
    }

    fn ecs(&self) -> EcsMetadata {
        let v1 = if self.ecs_v1 { MetadataV1::Allowed } else { MetadataV1::Refused };
        EcsMetadata { role: self.ecs_role.clone(), endpoint: self.ecs_endpoint.clone(), v1 }
    }

    fn cli(&self, kinds: &[CliFile]) -> CliFiles {
        let path = |kind: CliFile| match kind {
            CliFile::Json => self.cli_config.clone(),
            CliFile::Ini => self.cli_credentials.clone(),
        };
        CliFiles {
            files: kinds.iter().map(|kind| (*kind, path(*kind))).collect(),
            profile: self.cli_profile.clone(),
            session_name: self.role_session_name.clone(),
            session_duration: self.session_duration,
            sts: self.sts_service(),
            ecs: self.ecs(),
        }
    }
}

/// `cn-hangzhou` of `onsmqtt.cn-hangzhou.aliyuncs.com`.
fn region_of_upstream(r: &Reader<'_>) -> Option<String> {
    let raw = r.given("upstream.endpoint")?;
    uri::endpoint(raw.text().ok()?).ok()?.region()
}

fn is_word(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (1..=64).contains(&text.len()) && text.chars().all(fits)
}

fn region(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let wrong = || ValueError::new("is not a region", "write one such as cn-hangzhou");
    if is_word(text) { Ok(text.to_owned()) } else { Err(wrong()) }
}

fn word(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ValueError::new("is not the name of a role", "write 1 to 64 of A-Z a-z 0-9 . - _"))
}

fn profile(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    if text.is_empty() || text.contains(char::is_control) {
        return Err(ValueError::new("is not the name of a profile", "leave it out, or write one"));
    }
    Ok(text.to_owned())
}

/// Such as `acs:ram::1234567890123456:role/tollgate`.
pub(super) fn arn(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let is_arn = text.starts_with("acs:ram:")
        && text.len() <= 512
        && text.split(':').count() >= 5
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    let wrong = || {
        let remedy = "write one such as acs:ram::1234567890123456:role/tollgate";
        ValueError::new("is not an ARN", remedy)
    };
    if is_arn { Ok(text.to_owned()) } else { Err(wrong()) }
}

fn session_name(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '@' | '-' | '_');
    if (2..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ValueError::new("is not the name of a session", "write 2 to 64 of A-Z a-z 0-9 . @ - _"))
}

fn external_id(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let fits = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '=' | ',' | '.' | '@' | ':' | '/' | '-' | '_')
    };
    if (2..=1_224).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ValueError::new("is not an external id", "write 2 to 1224 of A-Z a-z 0-9 = , . @ : / - _"))
}

/// A JSON object that the provider may take. What stands in it is the provider's to judge.
pub(super) fn policy(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    if text.chars().count() > MAX_POLICY {
        let problem = format!("is longer than {MAX_POLICY} characters");
        return Err(ValueError::new(problem, "write a shorter one"));
    }
    let read = serde_json::from_str::<serde_json::Value>(text);
    if read.is_ok_and(|read| read.get("Statement").is_some_and(serde_json::Value::is_array)) {
        return Ok(text.to_owned());
    }
    let remedy = "write {\"Version\":\"1\",\"Statement\":[…]}";
    Err(ValueError::new("is not a policy", remedy))
}

/// A path; `~/` is the home folder.
fn home_path(raw: &Raw) -> Result<PathBuf, ValueError> {
    let path = checks::path(raw)?;
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => Ok(PathBuf::from(home).join(rest)),
        _ => Ok(path),
    }
}
