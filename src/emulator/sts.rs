//! The Security Token Service: temporary keys of roles.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::issued_key::{IssuedKey, KeyAnswer};
use super::key_ring::KeyRole;
use super::operation::Operation;
use super::policy::Policy;
use super::reply::{self, Body};
use super::send_message;
use super::state::EmulatorInner;
use crate::verification::{ReceivedCall, Refusal};

const AUDIENCE: &str = "sts.aliyuncs.com";
const HOUR: u64 = 3_600;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Assumed {
    request_id: String,
    #[serde(rename = "AssumedRoleUser")]
    user: AssumedRoleUser,
    credentials: IssuedKey,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AssumedRoleUser {
    arn: String,
    assumed_role_id: String,
}

pub(super) fn answer(shared: &EmulatorInner, call: &ReceivedCall<'_>) -> KeyAnswer {
    let operation = match Operation::of(call) {
        Ok(operation) => operation,
        Err(refusal) => return KeyAnswer { answer: Err(refusal), fault: None },
    };
    let now = shared.now();
    let fault = shared.books().faults.draw(operation.as_str(), "", now);
    // A call that a fault hits gives out no key.
    let is_hit =
        fault.as_ref().is_some_and(|fault| fault.code.is_some() || fault.latency.is_none());
    let answer = if is_hit {
        Err(Refusal::new("ServiceUnavailable"))
    } else {
        assume(shared, operation, call)
    };
    if let Err(refusal) = &answer {
        shared.books().ledger.refuse(&refusal.code);
    }
    KeyAnswer { answer, fault }
}

fn assume(
    shared: &EmulatorInner,
    operation: Operation,
    call: &ReceivedCall<'_>,
) -> Result<Response<Body>, Refusal> {
    let mandatory = |name| call.parameter(name).ok_or_else(|| Refusal::missing(name));
    let role_arn = mandatory("RoleArn")?;
    if operation == Operation::AssumeRoleWithOidc {
        let provider = mandatory("OIDCProviderArn")?;
        if !provider.starts_with("acs:ram::") || !provider.contains(":oidc-provider/") {
            return Err(Refusal::new("InvalidParameter.OIDCProviderArn"));
        }
        check_token(mandatory("OIDCToken")?, shared.wall())?;
    } else if !send_message::authenticate(shared, call)?.may("sts:AssumeRole", role_arn) {
        return Err(Refusal::new("NoPermission"));
    }
    if !role_arn.starts_with("acs:ram::") || !role_arn.contains(":role/") {
        return Err(Refusal::new("InvalidParameter.RoleArn"));
    }
    let session_name = mandatory("RoleSessionName")?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '@' | '-' | '_');
    if !(2..=64).contains(&session_name.len()) || !session_name.chars().all(fits) {
        return Err(Refusal::new("InvalidParameter.RoleSessionName"));
    }
    let seconds = call.parameter("DurationSeconds").map_or(Ok(HOUR), str::parse);
    let seconds = seconds.ok().filter(|seconds| (900..=12 * HOUR).contains(seconds));
    let seconds = seconds.ok_or_else(|| Refusal::new("InvalidParameter.DurationSeconds"))?;
    let policy = match call.parameter("Policy") {
        None => None,
        Some(text) => {
            let policy = Policy::parse(text).filter(|_| text.len() <= 2_048);
            Some(policy.ok_or_else(|| Refusal::new("InvalidParameter.PolicyGrammar"))?)
        }
    };
    let role = KeyRole {
        role_arn: role_arn.to_owned(),
        session_name: session_name.to_owned(),
        external_id: call.parameter("ExternalId").map(str::to_owned),
    };
    let user = AssumedRoleUser {
        arn: format!("{role_arn}/{session_name}"),
        assumed_role_id: format!("300000000000000001:{session_name}"),
    };
    let credentials = IssuedKey::new(shared, Duration::from_secs(seconds), policy, role);
    let request_id = Uuid::new_v4().hyphenated().to_string().to_uppercase();
    let assumed = Assumed { request_id, user, credentials };
    Ok(reply::json(StatusCode::OK, &assumed))
}

/// All but its signature: there is no issuer to ask for a key.
fn check_token(token: &str, now: Timestamp) -> Result<(), Refusal> {
    let invalid = || Refusal::new("AuthenticationFail.OIDCToken.Invalid");
    if !(4..=20_000).contains(&token.len()) {
        return Err(invalid());
    }
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(invalid());
    };
    let claims = URL_SAFE_NO_PAD.decode(claims).ok();
    let claims = claims.and_then(|claims| serde_json::from_slice::<Value>(&claims).ok());
    let claims = claims.ok_or_else(invalid)?;
    let is_for_us = match &claims["aud"] {
        Value::String(one) => one == AUDIENCE,
        Value::Array(all) => all.iter().any(|one| one == AUDIENCE),
        _ => false,
    };
    let ends = claims["exp"].as_i64().filter(|_| is_for_us && claims["iss"].is_string());
    if ends.ok_or_else(invalid)? <= now.as_second() {
        return Err(Refusal::new("AuthenticationFail.OIDCToken.Expired"));
    }
    Ok(())
}
