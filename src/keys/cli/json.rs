//! Profiles of `~/.aliyun/config.json`.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;

use super::super::answer::secret;
use super::{Profile, ProfileRole};

/// Profiles that name each other as their base: longer chains are circles.
const MAX_CHAIN: usize = 8;

#[derive(Deserialize)]
struct Profiles {
    current: Option<String>,
    #[serde(default)]
    profiles: Vec<JsonProfile>,
}

#[derive(Deserialize)]
struct JsonProfile {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mode: String,
    access_key_id: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    access_key_secret: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    sts_token: Option<SecretString>,
    ram_role_arn: Option<String>,
    ram_session_name: Option<String>,
    role_session_name: Option<String>,
    expired_seconds: Option<u64>,
    policy: Option<String>,
    external_id: Option<String>,
    sts_region: Option<String>,
    enable_vpc: Option<bool>,
    ram_role_name: Option<String>,
    oidc_provider_arn: Option<String>,
    oidc_token_file: Option<PathBuf>,
    source_profile: Option<String>,
}

/// The profile of this name, or the current one; or what is wrong, without anything of the file's values.
pub(super) fn profile(text: &str, name: Option<&str>) -> Result<Profile, String> {
    let read: Profiles = serde_json::from_str(text).map_err(|error| {
        format!("is no JSON of profiles (line {}, column {})", error.line(), error.column())
    })?;
    let Profiles { current, mut profiles } = read;
    let name = name.map(str::to_owned).or(current).filter(|name| !name.is_empty());
    let name = name.ok_or("names no current profile")?;
    build(&mut profiles, &name, MAX_CHAIN)
}

fn build(profiles: &mut Vec<JsonProfile>, name: &str, left: usize) -> Result<Profile, String> {
    let shown = name.escape_debug();
    if left == 0 {
        return Err(format!("profile \"{shown}\": its source profiles are a circle"));
    }
    let at = profiles.iter().position(|profile| profile.name == name);
    let at = at.ok_or_else(|| format!("has no profile \"{shown}\""))?;
    // It is used once: a profile that is its own source is a circle.
    let profile = profiles.swap_remove(at);
    let wrong = |what: &str| format!("profile \"{shown}\": {what}");
    match &*profile.mode {
        "AK" => lasting(profile, TokenRule::None).map_err(|what| wrong(&what)),
        "StsToken" => lasting(profile, TokenRule::Needed).map_err(|what| wrong(&what)),
        "EcsRamRole" => Ok(Profile::Machine { role: nonempty(profile.ram_role_name) }),
        "OIDC" => {
            let provider_arn = nonempty(profile.oidc_provider_arn.clone());
            let provider_arn = provider_arn.ok_or_else(|| wrong("has no oidc_provider_arn"))?;
            let token_file = profile.oidc_token_file.clone();
            let token_file = token_file.ok_or_else(|| wrong("has no oidc_token_file"))?;
            let role = role(profile).map_err(|what| wrong(&what))?;
            Ok(Profile::Oidc { provider_arn, token_file, role })
        }
        "RamRoleArn" => {
            let mut profile = profile;
            let base = JsonProfile {
                access_key_id: profile.access_key_id.take(),
                access_key_secret: profile.access_key_secret.take(),
                sts_token: profile.sts_token.take(),
                ..JsonProfile::empty()
            };
            let base = lasting(base, TokenRule::Allowed).map_err(|what| wrong(&what))?;
            let role = role(profile).map_err(|what| wrong(&what))?;
            Ok(Profile::Role { base: Box::new(base), role })
        }
        "ChainableRamRoleArn" => {
            let source = nonempty(profile.source_profile.clone());
            let source = source.ok_or_else(|| wrong("has no source_profile"))?;
            let role = role(profile).map_err(|what| wrong(&what))?;
            let base = build(profiles, &source, left - 1)?;
            Ok(Profile::Role { base: Box::new(base), role })
        }
        mode => Err(wrong(&format!(
            "has the mode \"{}\"; tollgate knows AK, StsToken, RamRoleArn, EcsRamRole, OIDC and \
             ChainableRamRoleArn",
            mode.escape_debug()
        ))),
    }
}

/// Whether a lasting key of a profile has a token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenRule {
    None,
    Allowed,
    Needed,
}

fn lasting(profile: JsonProfile, token: TokenRule) -> Result<Profile, String> {
    let id = nonempty(profile.access_key_id).ok_or("has no access_key_id")?;
    let secret = profile.access_key_secret.ok_or("has no access_key_secret")?;
    let token = match (token, profile.sts_token) {
        (TokenRule::None, _) => None,
        (TokenRule::Needed, None) => return Err("has no sts_token".to_owned()),
        // The command line writes an empty one.
        (_, Some(token)) if secrecy::ExposeSecret::expose_secret(&token).is_empty() => None,
        (_, token) => token,
    };
    Ok(Profile::Lasting { id, secret, token })
}

fn role(profile: JsonProfile) -> Result<ProfileRole, String> {
    Ok(ProfileRole {
        arn: nonempty(profile.ram_role_arn).ok_or("has no ram_role_arn")?,
        name: nonempty(profile.ram_session_name).or(nonempty(profile.role_session_name)),
        // The command line writes 0 where none was given.
        seconds: profile.expired_seconds.filter(|seconds| *seconds > 0),
        policy: nonempty(profile.policy),
        external_id: nonempty(profile.external_id),
        sts_region: nonempty(profile.sts_region),
        vpc: profile.enable_vpc.unwrap_or_default(),
    })
}

fn nonempty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

impl JsonProfile {
    fn empty() -> Self {
        Self {
            name: String::new(),
            mode: String::new(),
            access_key_id: None,
            access_key_secret: None,
            sts_token: None,
            ram_role_arn: None,
            ram_session_name: None,
            role_session_name: None,
            expired_seconds: None,
            policy: None,
            external_id: None,
            sts_region: None,
            enable_vpc: None,
            ram_role_name: None,
            oidc_provider_arn: None,
            oidc_token_file: None,
            source_profile: None,
        }
    }
}
