//! ACS3-HMAC-SHA256: the query, the listed headers and the body's hash.

use std::fmt::Display;

use http::header;
use jiff::Timestamp;

use super::call::ReceivedCall;
use super::canonical::{canonical_query, is_hmac_sha256, sha256_hex, unhex};
use super::refusal::Refusal;
use super::{Claimed, check_time, does_not_match};

const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// What the headers say of the signature.
pub(super) struct SignedRequest<'a> {
    pub(super) claimed: Claimed<'a>,
    authorization: Authorization<'a>,
    declared_hash: &'a str,
}

impl<'a> SignedRequest<'a> {
    pub(super) fn read(call: &'a ReceivedCall<'_>, now: Timestamp) -> Result<Self, Refusal> {
        let mandatory = |name: &str| {
            call.header(name).ok_or_else(|| incomplete(format_args!("the header {name} is needed")))
        };
        let authorization = Authorization::parse(mandatory("authorization")?)?;
        let timestamp = mandatory("x-acs-date")?;
        let nonce = mandatory("x-acs-signature-nonce")?;
        let declared_hash = mandatory("x-acs-content-sha256")?;
        authorization.check_coverage(call)?;
        let time = check_time(timestamp, now)?;
        let token = call.header("x-acs-security-token");
        let claimed = Claimed { key_id: authorization.key_id, token, nonce, time };
        Ok(Self { claimed, authorization, declared_hash })
    }

    pub(super) fn verify(&self, call: &ReceivedCall<'_>, secret: &str) -> Result<(), Refusal> {
        let body_hash = sha256_hex(call.body);
        let canonical = canonical_request(call, self.authorization.signed_headers, &body_hash)?;
        let string_to_sign = string_to_sign(&canonical);
        let signature = unhex(self.authorization.signature).unwrap_or_default();
        if self.declared_hash == body_hash && is_hmac_sha256(secret, &string_to_sign, &signature) {
            return Ok(());
        }
        Err(does_not_match(&string_to_sign))
    }
}

/// The id of the key that a call says it is signed with.
pub(super) fn key_id<'a>(call: &'a ReceivedCall<'_>) -> Result<&'a str, Refusal> {
    let text = call.header("authorization").unwrap_or_default();
    Authorization::parse(text).map(|authorization| authorization.key_id)
}

/// `ACS3-HMAC-SHA256 Credential=…,SignedHeaders=a;b,Signature=…`, without blanks.
struct Authorization<'a> {
    key_id: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(text: &'a str) -> Result<Self, Refusal> {
        let malformed = || incomplete("the Authorization header is malformed");
        let (algorithm, rest) = text.split_once(' ').ok_or_else(malformed)?;
        if algorithm != ALGORITHM {
            return Err(Refusal::new("InvalidSignatureMethod"));
        }
        let mut fields = rest.split(',');
        let mut field = |name: &str| {
            let field = fields.next()?.strip_prefix(name)?.strip_prefix('=')?;
            (!field.is_empty()).then_some(field)
        };
        let parsed = Self {
            key_id: field("Credential").ok_or_else(malformed)?,
            signed_headers: field("SignedHeaders").ok_or_else(malformed)?,
            signature: field("Signature").ok_or_else(malformed)?,
        };
        if fields.next().is_some() { Err(malformed()) } else { Ok(parsed) }
    }

    /// The host, a content type and every `x-acs-*` header that came must be signed.
    fn check_coverage(&self, call: &ReceivedCall<'_>) -> Result<(), Refusal> {
        let must =
            call.headers.keys().map(header::HeaderName::as_str).filter(|name| {
                matches!(*name, "host" | "content-type") || name.starts_with("x-acs-")
            });
        for name in must {
            if !self.signed_headers.split(';').any(|signed| signed == name) {
                return Err(incomplete(format_args!("the header {name} is not signed")));
            }
        }
        Ok(())
    }
}

/// Lines joined by LF. Headers are sorted here and their list is not, so both must be sorted.
pub(super) fn canonical_request(
    call: &ReceivedCall<'_>,
    signed_headers: &str,
    body_hash: &str,
) -> Result<String, Refusal> {
    let mut names: Vec<_> = signed_headers.split(';').map(str::to_ascii_lowercase).collect();
    names.sort_unstable();
    let mut out = String::with_capacity(1024);
    out.push_str(call.method.as_str());
    out.push_str("\n/\n");
    out.push_str(&canonical_query(call.query.iter()));
    out.push('\n');
    for name in &names {
        let value = call.header(name);
        let value =
            value.ok_or_else(|| incomplete(format_args!("the header {name} did not arrive")))?;
        for part in [name, ":", value.trim(), "\n"] {
            out.push_str(part);
        }
    }
    out.push('\n');
    out.push_str(signed_headers);
    out.push('\n');
    out.push_str(body_hash);
    Ok(out)
}

pub(super) fn string_to_sign(canonical_request: &str) -> String {
    format!("{ALGORITHM}\n{}", sha256_hex(canonical_request.as_bytes()))
}

fn incomplete(what: impl Display) -> Refusal {
    Refusal::new("IncompleteSignature")
        .saying(format!("The request signature does not conform to Aliyun standards: {what}."))
}
