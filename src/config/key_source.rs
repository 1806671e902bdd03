//! Where keys come from, as modules use it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::uri::{self, Endpoint};

/// Where the key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `ALIBABA_CLOUD_ACCESS_KEY_ID`, `…_SECRET` and `ALIBABA_CLOUD_SECURITY_TOKEN`.
    Env,
    /// A folder with a file for each part, as Kubernetes mounts a Secret.
    File {
        /// The folder.
        path: PathBuf,
        /// How often its contents are compared.
        poll: Duration,
    },
    /// A URI that answers with a short-lived key.
    Uri(KeyUri),
    /// The role of a Kubernetes service account.
    Oidc(OidcRole),
    /// A role that another source's key assumes.
    Role(Box<RoleOf>),
    /// The role of the machine.
    Ecs(EcsMetadata),
    /// A profile of the provider's command line or SDKs.
    Cli(CliFiles),
    /// The first of these that has one.
    Auto(Vec<Self>),
}

/// A URI that answers with a short-lived key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyUri {
    /// Absolute, http or https; it may hold a password or a token.
    pub uri: String,
    /// A file with a token that is sent as `Authorization: Bearer`.
    pub token_file: Option<PathBuf>,
    /// Authorities of an https URI, besides the bundled ones and the system's.
    pub ca_file: Option<PathBuf>,
}

impl KeyUri {
    /// A URI that needs nothing else.
    pub fn plain(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), token_file: None, ca_file: None }
    }
}

impl fmt::Debug for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uri, token_file, ca_file } = self;
        let mut shown = f.debug_struct("KeyUri");
        shown.field("uri", &uri::mask(uri)).field("token_file", token_file);
        shown.field("ca_file", ca_file).finish()
    }
}

/// What is asked of the Security Token Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleSession {
    /// Such as `acs:ram::123456789012****:role/tollgate`.
    pub role_arn: String,
    /// The session's name, in the provider's audit log.
    pub name: String,
    /// How long the key is to live.
    pub duration: Duration,
    /// A policy that narrows what the key may do, as JSON.
    pub policy: Option<String>,
    /// What a role of another account may ask for.
    pub external_id: Option<String>,
}

/// Where the Security Token Service is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StsService {
    /// Over everything else.
    pub endpoint: Option<Endpoint>,
    /// Such as `cn-hangzhou`.
    pub region: Option<String>,
    /// Whether it is reached within the VPC, which needs a region.
    pub vpc: bool,
}

impl StsService {
    /// The endpoint; `region` and `vpc` of a profile count where there are no others.
    pub fn endpoint(&self, region: Option<&str>, vpc: bool) -> Endpoint {
        if let Some(endpoint) = &self.endpoint {
            return endpoint.clone();
        }
        let host = match self.region.as_deref().or(region) {
            None => "sts.aliyuncs.com".to_owned(),
            Some(region) if self.vpc || vpc => format!("sts-vpc.{region}.aliyuncs.com"),
            Some(region) => format!("sts.{region}.aliyuncs.com"),
        };
        Endpoint { tls: true, host, port: 443 }
    }
}

/// RRSA: a role for the token that Kubernetes mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcRole {
    /// Such as `acs:ram::123456789012****:oidc-provider/ack-rrsa-c1234`.
    pub provider_arn: String,
    /// The token's file.
    pub token_file: PathBuf,
    /// The role.
    pub session: RoleSession,
    /// Where it is asked for.
    pub sts: Endpoint,
}

/// A role, and the source whose key assumes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleOf {
    /// That source.
    pub base: KeySource,
    /// The role.
    pub session: RoleSession,
    /// Where it is asked for.
    pub sts: Endpoint,
}

/// Whether the metadata service may be asked without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataV1 {
    /// Where it gives no token.
    Allowed,
    /// Never.
    Refused,
}

/// The metadata service of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcsMetadata {
    /// The role; `None`: the one that the service names.
    pub role: Option<String>,
    /// Where the service is.
    pub endpoint: Endpoint,
    /// Whether version 1 will do.
    pub v1: MetadataV1,
}

/// A kind of file with profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CliFile {
    /// That of the command line.
    Json,
    /// That of the SDKs.
    Ini,
}

/// Files with profiles, and what holds where a profile says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliFiles {
    /// In the order in which they are looked for.
    pub files: Vec<(CliFile, PathBuf)>,
    /// The profile; `None`: the current one, or `default`.
    pub profile: Option<String>,
    /// Of the sessions of roles.
    pub session_name: String,
    /// Of the sessions of roles.
    pub session_duration: Duration,
    /// Where roles are asked for.
    pub sts: StsService,
    /// For a profile of a machine.
    pub ecs: EcsMetadata,
}

/// How a new key is tried before all calls are signed with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Canary {
    /// The share of calls; 1: a new key is used at once.
    pub share: f64,
    /// For how long at least.
    pub period: Duration,
}

impl Canary {
    /// A new key is used at once.
    pub const NONE: Self = Self { share: 1.0, period: Duration::ZERO };
}

/// `[keys]`: where the key comes from, and how a new one is taken up.
#[derive(Debug, Clone, PartialEq)]
pub struct Keys {
    /// Where the key comes from.
    pub source: KeySource,
    /// How a new one is tried.
    pub canary: Canary,
}

impl From<KeySource> for Keys {
    /// A new key is used at once.
    fn from(source: KeySource) -> Self {
        Self { source, canary: Canary::NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the provider's list of STS endpoints has them.
    #[test]
    fn where_the_token_service_is() {
        let of = |region: Option<&str>, vpc, profile: Option<&str>, of_profile| {
            let region = region.map(str::to_owned);
            StsService { endpoint: None, region, vpc }.endpoint(profile, of_profile)
        };
        for (found, host) in [
            (of(None, false, None, false), "sts.aliyuncs.com"),
            (of(Some("cn-hangzhou"), false, None, false), "sts.cn-hangzhou.aliyuncs.com"),
            (of(Some("cn-hangzhou"), true, None, false), "sts-vpc.cn-hangzhou.aliyuncs.com"),
            // A profile's, where the configuration has none.
            (of(None, false, Some("cn-beijing"), true), "sts-vpc.cn-beijing.aliyuncs.com"),
            (
                of(Some("cn-hangzhou"), false, Some("cn-beijing"), false),
                "sts.cn-hangzhou.aliyuncs.com",
            ),
        ] {
            assert_eq!((found.tls, &*found.host, found.port), (true, host, 443));
        }
        let endpoint = Endpoint { tls: false, host: "127.0.0.1".to_owned(), port: 9460 };
        let own = StsService { endpoint: Some(endpoint.clone()), region: None, vpc: true };
        assert_eq!(own.endpoint(Some("cn-beijing"), true), endpoint);
    }
}
