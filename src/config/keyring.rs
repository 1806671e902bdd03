//! `[keyring]`: the central holder of keys, which only `tollgate keyring` reads.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::checks;
use super::credentials::{LIFE, MAX_POLICY, arn, policy};
use super::error::ValueError;
use super::key_source::RoleSession;
use super::parse::{Raw, Scalar};
use super::read::{Reader, duration, optional, value, whole};
use super::row::Row;
use super::table::section;
use super::tables::{Table, tables};
use super::uri::{self, Endpoint};

/// Keys of `[[keyring.issuers]]` and `[[keyring.callers]]`.
const ISSUER: [&str; 4] = ["issuer", "jwks", "ca_file", "token_file"];
const CALLER: [&str; 8] =
    ["name", "subject", "issuer", "token_file", "instances", "topics", "role_arn", "policy"];
/// More callers, or issuers, than these are a mistake.
const MOST: usize = 1_000;

section! {
    pub(super) struct KeyringRows [keyring] {
        /// Only `tollgate keyring` reads this section (docs/keys.md). Its own key comes from [keys].
        ///
        /// Where it listens, and the files of its certificate and private key, which it reads again when they
        /// change. Without them it listens on a loopback address only.
        listen: SocketAddr = "0.0.0.0:9465", value(address);
        certificate: Option<PathBuf> => Example "/etc/tollgate/tls/tls.crt", optional(checks::path);
        private_key: Option<PathBuf> => Example "/etc/tollgate/tls/tls.key", optional(checks::path);

        /// The role whose keys it hands out, and how long they live.
        role_arn: Option<String> => Example "acs:ram::1234567890123456:role/tollgate", optional(arn);
        session_duration: Duration = "1h", duration(LIFE);

        /// The audience that tokens of service accounts must have.
        audience: String = "tollgate", value(word);

        /// The most keys of callers at once, and the most requests of one of them in a second. A caller whose
        /// subject has a * has one for each account that it stands for: the rest, divided among those callers.
        max_callers: usize = 1000, whole(1..=100_000);
        requests_per_second: u32 = 50, whole(1..=1_000);

        /// The most connections at once.
        max_connections: usize = 512, whole(8..=65_536);

        /// Who issues these tokens: the issuer's name in them, the address of its key set, and for that, if it
        /// needs them, its authorities and a token that proves who asks. As tables below the section's other keys:
        /// [[keyring.issuers]]
        /// issuer = "https://kubernetes.default.svc"
        /// jwks = "https://kubernetes.default.svc/openid/v1/jwks"
        /// ca_file = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
        /// token_file = "/var/run/secrets/kubernetes.io/serviceaccount/token"
        issuers: Vec<Issuer> = [], issuers;

        /// Who gets keys, and for what: a service account by its subject, in which * stands for anything, and by
        /// its issuer (which may be left out if there is one), or the holder of a token that a file here has, too. instances and topics (parent topics) narrow what
        /// the keys may do; empty: all. role_arn and policy stand for those that follow from the above. As tables:
        /// [[keyring.callers]]
        /// name = "shop"
        /// subject = "system:serviceaccount:shop:*"
        /// instances = ["post-cn-0pp12gl0000"]
        /// topics = ["Alarm"]
        callers: Vec<CallerRow> = [], callers;
    }
}

/// `[keyring]`
#[derive(Debug, Clone)]
pub struct Keyring {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Files of its certificate and private key; `None`: it speaks plain HTTP, on a loopback address.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where roles are asked for.
    pub sts: Endpoint,
    /// What it asks for, but for the policy, which is the caller's.
    pub session: RoleSession,
    /// The audience of tokens.
    pub audience: String,
    /// Who issues tokens.
    pub issuers: Vec<Issuer>,
    /// Who gets keys.
    pub callers: Vec<KeyringCaller>,
    /// The most keys of callers at once.
    pub max_callers: usize,
    /// The most requests of a caller in a second.
    pub requests_per_second: u32,
    /// The most connections at once.
    pub max_connections: usize,
}

impl Keyring {
    /// What it cannot do without, if that is missing.
    pub fn missing(&self) -> Option<&'static str> {
        self.callers.is_empty().then_some(
            "keyring.callers is empty, so nothing would get a key: write [[keyring.callers]] with name, and \
             subject or token_file",
        )
    }
}

/// Who issues tokens of service accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Its name in a token.
    pub issuer: String,
    /// Where its key set is.
    pub jwks: String,
    /// Authorities, besides the bundled ones and the system's.
    pub ca_file: Option<PathBuf>,
    /// A token that proves who asks.
    pub token_file: Option<PathBuf>,
}

/// Who gets keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyringCaller {
    /// In the log, and in the provider's audit log.
    pub name: String,
    /// How it proves itself.
    pub proof: CallerProof,
    /// Instances that it may publish to; empty: all.
    pub instances: Vec<String>,
    /// Parent topics that it may publish to; empty: all.
    pub topics: Vec<String>,
    /// Instead of the keyring's role.
    pub role_arn: Option<String>,
    /// Instead of the policy that follows from instances and topics.
    pub policy: Option<String>,
}

/// How a caller proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallerProof {
    /// By a token of a service account.
    ServiceAccount {
        /// Who has issued it.
        issuer: String,
        /// Such as `system:serviceaccount:shop:*`, where `*` stands for anything.
        subject: String,
    },
    /// By the token in this file.
    TokenFile(PathBuf),
}

/// A caller as a table has it.
#[derive(Debug, Clone)]
pub(super) struct CallerRow {
    caller: KeyringCaller,
    names_issuer: NamesIssuer,
}

/// Whether a table names the issuer of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamesIssuer {
    /// It does, or needs none.
    Yes,
    /// It is the only one that there is.
    No,
}

/// What `[keyring]` says; `None` without a role: there is no keyring then.
#[expect(clippy::option_option, reason = "a value that is wrong, and one that is not there")]
pub(super) fn keyring(r: &mut Reader<'_>, sts: Option<Endpoint>) -> Option<Option<Keyring>> {
    let rows = KeyringRows::read(r)?;
    let Some(role_arn) = rows.role_arn else { return Some(None) };
    let before = r.errors.len();
    let tls = match (rows.certificate, rows.private_key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            let remedy = "set keyring.certificate and keyring.private_key";
            r.conflict("keyring.certificate", "is set without the other", remedy);
            None
        }
    };
    if tls.is_none() && !rows.listen.ip().is_loopback() {
        let problem = "is no loopback address, and keys would cross a network in clear text";
        r.conflict("keyring.listen", problem, "set keyring.certificate and keyring.private_key");
    }
    let session = RoleSession {
        role_arn,
        name: "tollgate-keyring".to_owned(),
        duration: rows.session_duration,
        policy: None,
        external_id: None,
    };
    let callers = resolve(r, rows.callers, &rows.issuers);
    let names: HashSet<_> = rows.issuers.iter().map(|issuer| &issuer.issuer).collect();
    if names.len() < rows.issuers.len() {
        let problem = "has two issuers with one name";
        r.conflict("keyring.issuers", problem, "write each issuer once");
    }
    if callers.len() > rows.max_callers {
        let problem = "is less than the callers that there are";
        r.conflict("keyring.max_callers", problem, "let it have one for each caller at least");
    }
    let keyring = Keyring {
        listen: rows.listen,
        tls,
        sts: sts?,
        session,
        audience: rows.audience,
        issuers: rows.issuers,
        callers,
        max_callers: rows.max_callers,
        requests_per_second: rows.requests_per_second,
        max_connections: rows.max_connections,
    };
    (r.errors.len() == before).then_some(Some(keyring))
}

/// The callers, each with its issuer and a policy that the provider takes.
fn resolve(r: &mut Reader<'_>, rows: Vec<CallerRow>, issuers: &[Issuer]) -> Vec<KeyringCaller> {
    let resolved = rows.into_iter().map(|CallerRow { mut caller, names_issuer }| {
        let name = caller.name.clone();
        let mut wrong = |problem: String, remedy: &'static str| {
            r.conflict("keyring.callers", format!("has caller {name}, {problem}"), remedy);
        };
        if let CallerProof::ServiceAccount { issuer, .. } = &mut caller.proof {
            match (names_issuer, issuers) {
                (_, []) => wrong(
                    "which has a subject, and keyring.issuers is empty".to_owned(),
                    "write [[keyring.issuers]] with issuer and jwks",
                ),
                (NamesIssuer::No, [only]) => issuer.clone_from(&only.issuer),
                (NamesIssuer::No, _) => wrong(
                    "which has a subject and no issuer, and there are several".to_owned(),
                    "write issuer in it: a subject of one is not that of another",
                ),
                (NamesIssuer::Yes, all) if all.iter().all(|one| one.issuer != *issuer) => wrong(
                    format!("whose issuer {issuer} is not one of keyring.issuers"),
                    "write the name that one of [[keyring.issuers]] has",
                ),
                (NamesIssuer::Yes, _) => {}
            }
        }
        if caller.session_policy().chars().count() > MAX_POLICY {
            wrong(
                format!(
                    "whose instances and topics make a policy of more than {MAX_POLICY} characters"
                ),
                "write fewer, with * for several, or a policy of its own",
            );
        }
        caller
    });
    resolved.collect()
}

fn issuers(r: &mut Reader<'_>, row: &Row) -> Option<Vec<Issuer>> {
    let remedy = "write [[keyring.issuers]] in the file, with issuer and jwks";
    let read = tables(r, row, &ISSUER, remedy, |r, table| {
        let issuer = table.value(r, "issuer", word);
        let jwks = table.value(r, "jwks", |raw| uri::credentials(raw.text()?));
        let ca_file = table.value_or(r, "ca_file", None, |raw| checks::path(raw).map(Some));
        let token_file = table.value_or(r, "token_file", None, |raw| checks::path(raw).map(Some));
        let read =
            Issuer { issuer: issuer?, jwks: jwks?, ca_file: ca_file?, token_file: token_file? };
        if !read.jwks.starts_with("https:") {
            // Over a network, an attacker on the way could exchange the key set and so be any caller, and read the token.
            let remedy = "write an https jwks";
            match &read.token_file {
                Some(_) => return table.wrong(r, "would send a token in clear text", remedy),
                None if !is_on_this_machine(&read.jwks) => {
                    return table.wrong(r, "would take keys in clear text", remedy);
                }
                None => {}
            }
        }
        Some(read)
    })?;
    few(r, row, read)
}

fn callers(r: &mut Reader<'_>, row: &Row) -> Option<Vec<CallerRow>> {
    let remedy = "write [[keyring.callers]] in the file, with name and subject or token_file";
    let read = tables(r, row, &CALLER, remedy, |r, table| {
        let name = table.value(r, "name", caller_name);
        let proof = proof(r, table);
        let is_named = table.part("issuer").is_some() || table.part("subject").is_none();
        let instances = words(r, table, "instances");
        let topics = words(r, table, "topics");
        let role_arn = table.value_or(r, "role_arn", None, |raw| arn(raw).map(Some));
        let policy = table.value_or(r, "policy", None, |raw| policy(raw).map(Some));
        let caller = KeyringCaller {
            name: name?,
            proof: proof?,
            instances: instances?,
            topics: topics?,
            role_arn: role_arn?,
            policy: policy?,
        };
        let names_issuer = if is_named { NamesIssuer::Yes } else { NamesIssuer::No };
        Some(CallerRow { caller, names_issuer })
    })?;
    let mut names = HashSet::new();
    if let Some(twice) = read.iter().find(|row| !names.insert(&row.caller.name)) {
        let problem = format!("has two callers with the name {}", twice.caller.name);
        r.conflict(row.name, problem, "give each caller a name of its own");
        return None;
    }
    few(r, row, read)
}

fn is_on_this_machine(url: &str) -> bool {
    let url: Option<http::Uri> = url.parse().ok();
    let host = url.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn proof(r: &mut Reader<'_>, table: &Table<'_>) -> Option<CallerProof> {
    match (table.part("subject"), table.part("token_file")) {
        (Some(_), None) => {
            let subject = table.value(r, "subject", word);
            let issuer = table.value_or(r, "issuer", String::new(), word);
            Some(CallerProof::ServiceAccount { issuer: issuer?, subject: subject? })
        }
        (None, Some(_)) if table.part("issuer").is_some() => {
            table.wrong(r, "has an issuer and no subject", "write subject, or no issuer")
        }
        (None, Some(_)) => table.value(r, "token_file", checks::path).map(CallerProof::TokenFile),
        _ => table.wrong(r, "has not one of subject and token_file", "write one of them"),
    }
}

/// A list that may be left out.
fn words(r: &mut Reader<'_>, table: &Table<'_>, name: &str) -> Option<Vec<String>> {
    if table.part(name).is_none() {
        return Some(Vec::new());
    }
    table.required(r, name, |r, key, raw| r.items(key, raw, Scalar::Refused, resource_name))
}

fn few<T>(r: &mut Reader<'_>, row: &Row, read: Vec<T>) -> Option<Vec<T>> {
    if read.len() > MOST {
        r.conflict(row.name, format!("has more than {MOST}"), "write fewer, with * in subjects");
        return None;
    }
    Some(read)
}

fn address(raw: &Raw) -> Result<SocketAddr, ValueError> {
    let remedy = "write an address and a port, as in 0.0.0.0:9465";
    raw.text()?.parse().map_err(|_| ValueError::new("is not an address with a port", remedy))
}

fn word(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let fits = (1..=512).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    let wrong = || ValueError::new("has blanks or is empty", "write 1 to 512 visible characters");
    if fits { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// It becomes a part of the session's name.
fn caller_name(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if (2..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ValueError::new("is not a caller's name", "write 2 to 64 of A-Z a-z 0-9 . - _"))
}

/// It becomes a part of a policy.
fn resource_name(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*');
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ValueError::new("is no name", "write 1 to 64 of A-Z a-z 0-9 - _ and *"))
}
