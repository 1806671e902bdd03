//! Pure functions from a call, a key, a moment and a nonce to a signed call.
//!
//! Nothing may touch a call after it is signed, and no signature serves twice: each try has a time
//! and a nonce of its own. Source: `help.aliyun.com/en/sdk/product-overview/rpc-mechanism` and
//! `…/v3-request-structure-and-signature`.

pub mod acs3;
pub mod encode;
pub mod rpc;

use std::fmt;

use jiff::Timestamp;

use crate::config::SignatureVersion;

/// The content type of parameters in a body.
pub const FORM: &str = "application/x-www-form-urlencoded";

/// A call of any operation of the provider's.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The `Host` header as it will be sent.
    pub authority: &'a str,
    /// The operation's name.
    pub action: &'a str,
    /// The revision of the provider's API.
    pub version: &'a str,
    /// The operation's own parameters, sorted by name as bytes.
    pub params: &'a [(&'a str, &'a str)],
}

impl fmt::Debug for Call<'_> {
    /// Its parameters may be a payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({} {})", self.action, self.version)
    }
}

/// Who calls. Borrowed for the moment of signing; not printable.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// Access key id.
    pub id: &'a str,
    /// Access key secret.
    pub secret: &'a str,
    /// The token of a short-lived key.
    pub token: Option<&'a str>,
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// What makes one try unlike every other.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// UTC, to the second: `2024-01-02T03:04:05Z`. The provider allows 15 minutes.
    pub time: String,
    /// 128 random bits in hexadecimal.
    pub nonce: String,
}

impl Stamp {
    /// A stamp from a moment and random bits.
    pub fn new(at: Timestamp, random: u128) -> Self {
        // jiff writes no fraction where there is none: a third of the time that a pattern takes.
        let second = Timestamp::from_second(at.as_second()).unwrap_or(at);
        Self { time: second.to_string(), nonce: format!("{random:032x}") }
    }
}

/// A call that is ready to be sent with POST.
#[derive(PartialEq, Eq)]
pub struct Signed {
    /// What follows `/?`; empty: nothing does.
    pub query: String,
    /// Headers besides `Host` and `Content-Length`.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl fmt::Debug for Signed {
    /// It carries a payload and a signature.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signed(…)")
    }
}

/// Signs a call in this version.
pub fn sign(version: SignatureVersion, call: &Call, key: &Credentials, stamp: &Stamp) -> Signed {
    match version {
        SignatureVersion::HmacSha1 => rpc::sign(call, key, stamp),
        SignatureVersion::Acs3 => acs3::sign(call, key, stamp),
    }
}
