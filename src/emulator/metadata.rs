//! The metadata service of a machine: the key of its role, with and without the token of version 2.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde::Serialize;
use uuid::Uuid;

use super::faults::METADATA;
use super::issued_key::{IssuedKey, KeyAnswer};
use super::key_ring::KeyRole;
use super::options::MetadataAccess;
use super::reply::{self, Body};
use super::state::EmulatorInner;

pub(super) const PREFIX: &str = "/latest/";
const TOKEN_PATH: &str = "/latest/api/token";
const ROLE_PATH: &str = "/latest/meta-data/ram/security-credentials/";
const MOST_TOKENS: usize = 1_000;
const ROLE: &str = "EmulatedRole";
const LIFE_HEADER: &str = "x-aliyun-ecs-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aliyun-ecs-metadata-token";
/// The service gives keys of six hours; an hour renews more often.
const LIFE: Duration = Duration::from_hours(1);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MachineKey {
    code: &'static str,
    #[serde(flatten)]
    key: IssuedKey,
    last_updated: String,
}

pub(super) fn answer(shared: &EmulatorInner, parts: &Parts) -> KeyAnswer {
    let now = shared.now();
    let fault = shared.books().faults.draw(METADATA, "", now);
    KeyAnswer { answer: Ok(reply_to(shared, parts)), fault }
}

fn reply_to(shared: &EmulatorInner, parts: &Parts) -> Response<Body> {
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let path = parts.uri.path();
    if path == TOKEN_PATH && parts.method == Method::PUT {
        let seconds = header(LIFE_HEADER).and_then(|text| text.parse::<u64>().ok());
        let Some(seconds) = seconds.filter(|seconds| (1..=21_600).contains(seconds)) else {
            return reply::text(StatusCode::BAD_REQUEST, Bytes::new());
        };
        let token = Uuid::new_v4().simple().to_string();
        let ends = now_and(shared, seconds);
        let mut books = shared.books();
        if books.metadata_tokens.len() >= MOST_TOKENS {
            books.metadata_tokens.remove(0);
        }
        books.metadata_tokens.push((token.clone(), ends));
        return reply::text(StatusCode::OK, token.into());
    }
    let needs_token = shared.options.metadata == MetadataAccess::TokenOnly;
    let is_known = |token: &str| {
        let now = shared.now();
        let mut books = shared.books();
        books.metadata_tokens.retain(|(_, ends)| *ends > now);
        books.metadata_tokens.iter().any(|(known, _)| known == token)
    };
    let may = header(TOKEN_HEADER).map_or(!needs_token, is_known);
    match path.strip_prefix(ROLE_PATH) {
        _ if parts.method != Method::GET => {
            reply::text(StatusCode::METHOD_NOT_ALLOWED, Bytes::new())
        }
        Some(_) if !may => reply::text(StatusCode::FORBIDDEN, Bytes::new()),
        Some("") => reply::text(StatusCode::OK, Bytes::from_static(ROLE.as_bytes())),
        Some(ROLE) => {
            let role = KeyRole {
                role_arn: format!("acs:ram::1000000000000001:role/{}", ROLE.to_lowercase()),
                session_name: "emulated-machine".to_owned(),
                external_id: None,
            };
            let key = IssuedKey::new(shared, LIFE, None, role);
            let last_updated = shared.wall().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            reply::json(StatusCode::OK, &MachineKey { code: "Success", key, last_updated })
        }
        _ => reply::text(StatusCode::NOT_FOUND, Bytes::new()),
    }
}

fn now_and(shared: &EmulatorInner, seconds: u64) -> u64 {
    shared.now().saturating_add(seconds.saturating_mul(1_000_000_000))
}
