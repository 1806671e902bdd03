//! `[[callers]]` and `[sdk]`: who may publish, how it proves itself, and the server for the provider's SDKs.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use super::billing::Billing;
use super::checks::{SHORTEST, path, pattern};
use super::error::ValueError;
use super::listen::{Address, Listen, TlsFiles, address};
use super::parse::{self, Raw, Scalar};
use super::read::{Reader, boolean, choice, duration, list};
use super::row::{Preset, Reload, Row};
use super::table::section;
use super::tables::{Table, tables};
use crate::action::{Action, published_ceiling};
use crate::message::TopicPattern;

/// The keys of one caller.
const CALLER: [&str; 11] = [
    "name",
    "token_file",
    "access_key_id",
    "secret_file",
    "uid",
    "certificate",
    "topics",
    "calls_per_second",
    "weight",
    "spool_share",
    "budget",
];
const MOST_CALLERS: usize = 1_000;
const HEAVIEST: u32 = 1_000;
const LONGEST_ACTION: usize = 64;
const HIGHEST_ACTION_CEILING: u32 = 100_000;
/// The provider's SDKs give up after ten seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(9);
/// The provider's own keys begin so.
const PROVIDERS_KEYS: [&str; 2] = ["LTAI", "STS."];
const ACCEPTS: [(&str, SdkAccept); 2] = [("issued", SdkAccept::Issued), ("any", SdkAccept::Any)];
const KEPT: [(&str, SdkKept); 2] = [("refuse", SdkKept::Refuse), ("accept", SdkKept::Accept)];

/// Who may publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// In metrics, in the log, and in its keys of idempotency.
    pub name: String,
    /// It proves itself by the token in this file.
    pub token_file: Option<PathBuf>,
    /// It proves itself by calls that are signed with this key.
    pub access_key: Option<IssuedKeyFile>,
    /// It proves itself by the user that its process has, over a Unix socket.
    pub uid: Option<u32>,
    /// It proves itself by a certificate with this name: a DNS name in small letters, or a URI.
    pub certificate: Option<String>,
    /// Topics that it may publish to; empty: all.
    pub topics: Vec<TopicPattern>,
    /// Messages of it in a second; `None`: as many as the ceilings let through.
    pub calls_per_second: Option<u32>,
    /// Its part of the permits beside others that wait, by their weights.
    pub weight: u32,
    /// The part of the spool that it may fill, 0 to 1; `None`: all of it.
    pub spool_share: Option<f64>,
    /// The name of the budget that its messages count against.
    pub budget: Option<String>,
}

/// An access key that we have issued, not the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedKeyFile {
    /// Its id.
    pub id: String,
    /// The file of its secret.
    pub secret_file: PathBuf,
}

/// Whose calls the server for the provider's SDKs takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SdkAccept {
    /// Those that are signed with a key of `[[callers]]`.
    Issued,
    /// Anybody's of this pod: nothing is proven.
    Any,
}

/// What becomes of a message of the provider's SDKs that is not delivered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SdkKept {
    /// It is refused, and not kept.
    Refuse,
    /// It is kept, and its call succeeds with an id of ours.
    Accept,
}

section! {
    /// `[sdk]`: the server for the provider's SDKs.
    #[derive(Debug, Clone)]
    pub struct Sdk [sdk] {
        /// Whether services may publish with the provider's own SDKs: with the endpoint "127.0.0.1:8080" and the
        /// protocol "http" their SendMessage is taken as a publish at the path /, in both signature versions,
        /// and tollgate signs it anew. The payload travels as the SDK has it.
        enabled: bool = false, boolean();

        /// Addresses of its own for that: one or a list. Empty: those of listen.publish.
        listen: Vec<Address> = [], list(Scalar::Allowed, address);

        /// Whose calls: "issued", those that are signed with an access key of [[callers]]; or "any", on
        /// loopback addresses and Unix sockets only: then any key signs, nothing is proven, and keys of the
        /// provider's own (LTAI..., STS....) are refused, since they have no business here.
        accept: SdkAccept = "issued", choice(&ACCEPTS);

        /// How long a call waits for a permit and its answer. Most SDKs wait for 10s, Node's pop-core for 3s, and
        /// most do not retry.
        wait: Duration = "5s", duration(SHORTEST..=LONGEST_WAIT);

        /// What becomes of a message that is not delivered in that time and may be stored: "refuse", 503
        /// ServiceUnavailable and it is not stored; or "accept", 200 with an id of tollgate's
        /// (TOLLGATE-...), and it is delivered later.
        kept: SdkKept = "refuse", choice(&KEPT);

        /// Other operations of the provider's API that are passed on, signed anew: "ApplyToken", for example. Each
        /// has the ceiling that the provider publishes for it, and its calls count towards those of the account
        /// and the address. Another figure, or one for an operation without: "CloseConnection=10", in calls a
        /// second. Callers with topics of their own may not call them.
        actions: Vec<Action> = [], list(Scalar::Allowed, action);
    }
}

/// An operation that is passed on, perhaps with its ceiling.
fn action(raw: &Raw) -> Result<Action, ValueError> {
    let text = raw.text()?;
    let (name, given) = text.split_once('=').map_or((text, None), |(name, n)| (name, Some(n)));
    let is_name = !name.is_empty() && name.len() <= LONGEST_ACTION;
    if !is_name || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(ValueError::new(
            "is not the name of an operation",
            "write \"ApplyToken\", say",
        ));
    }
    if name.eq_ignore_ascii_case("SendMessage") {
        let remedy = "leave it out: it is always taken, as a publish";
        return Err(ValueError::new("is the operation that publishes", remedy));
    }
    let ceiling = match given {
        Some(figure) => figure.parse().ok().filter(|n| (1..=HIGHEST_ACTION_CEILING).contains(n)),
        None => published_ceiling(name),
    };
    let ceiling = ceiling.ok_or_else(|| {
        if given.is_some() {
            let remedy = format!("write calls a second, 1 to {HIGHEST_ACTION_CEILING}");
            return ValueError::new("has a ceiling that is no such figure", remedy);
        }
        let remedy = format!("add the ceiling, calls a second: \"{name}=10\"");
        ValueError::new("is no operation of which a ceiling is published", remedy)
    })?;
    Ok(Action { name: name.into(), ceiling })
}

/// The row of `[[callers]]`, which is no key of a section.
pub(super) const ROWS: &[Row] = &[Row {
    name: "callers",
    preset: Preset::Default("[]"),
    range: String::new,
    documentation: &[
        " Who may publish, and how each proves itself; without any, everybody who reaches listen.publish may. A",
        " caller has at least one proof: token_file (the file of a token that it sends as Authorization: Bearer),",
        " access_key_id and secret_file (a key that you issue, for the provider's SDKs; see [sdk]), uid (the user",
        " of its process, over a Unix socket), or certificate (a DNS name or a URI among the subject alternative names",
        " of the certificate that it shows; see listen.tls.client_ca). Files are read again when they change. topics",
        " narrows what it may publish to (empty: all), calls_per_second how often. While callers wait for the ceilings,",
        " each gets permits by its weight (1); spool_share is the part of the spool that it may fill (1.0), and budget",
        " the name of a budget of [[billing.budgets]], which then counts only the callers that name it. As tables:",
        " [[callers]]",
        " name = \"orders\"",
        " token_file = \"/etc/tollgate/callers/orders\"",
        " topics = [\"Order/*\"]",
        " calls_per_second = 100",
        " weight = 2",
    ],
    reload: Reload::Restart,
}];

/// Who may publish.
pub(super) fn callers(r: &mut Reader<'_>) -> Option<Vec<Caller>> {
    let row = ROWS.first()?;
    let remedy = "write [[callers]] in the file, with name and token_file, access_key_id, uid or \
                  certificate";
    let read = tables(r, row, &CALLER, remedy, caller)?;
    let before = r.errors.len();
    if read.len() > MOST_CALLERS {
        r.conflict(row.name, format!("has more than {MOST_CALLERS}"), "write fewer");
    }
    let (mut names, mut ids, mut uids) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut certificates = HashSet::new();
    for caller in &read {
        let id = caller.access_key.as_ref().map(|key| &key.id);
        let what = match () {
            () if !names.insert(&caller.name) => format!("the name {}", caller.name),
            () if id.is_some_and(|id| !ids.insert(id)) => {
                format!("the access key of {}", caller.name)
            }
            () if caller.uid.is_some_and(|uid| !uids.insert(uid)) => {
                format!("the uid of {}", caller.name)
            }
            () if caller.certificate.as_ref().is_some_and(|name| !certificates.insert(name)) => {
                format!("the certificate of {}", caller.name)
            }
            () => continue,
        };
        let remedy = "give each caller a name and proofs of its own";
        r.conflict(row.name, format!("has {what} twice"), remedy);
    }
    (r.errors.len() == before).then_some(read)
}

fn caller(r: &mut Reader<'_>, table: &Table<'_>) -> Option<Caller> {
    let name = table.value(r, "name", caller_name);
    let token_file = table.value_or(r, "token_file", None, |raw| path(raw).map(Some));
    let id = table.value_or(r, "access_key_id", None, |raw| key_id(raw).map(Some));
    let secret_file = table.value_or(r, "secret_file", None, |raw| path(raw).map(Some));
    let uid = table.value_or(r, "uid", None, |raw| uid(raw).map(Some));
    let certificate = table.value_or(r, "certificate", None, |raw| certificate_name(raw).map(Some));
    let topics = match table.part("topics") {
        Some(_) => {
            table.required(r, "topics", |r, key, raw| r.items(key, raw, Scalar::Refused, pattern))
        }
        None => Some(Vec::new()),
    };
    let rate = table.value_or(r, "calls_per_second", None, |raw| rate(raw).map(Some));
    let weight = table.value_or(r, "weight", 1, |raw| parse::whole(raw, &(1..=HEAVIEST)));
    let spool_share = table.value_or(r, "spool_share", None, |raw| parse::share(raw).map(Some));
    let budget =
        table.value_or(r, "budget", None, |raw| raw.text().map(|name| Some(name.to_owned())));
    let (name, token_file, id, secret_file) = (name?, token_file?, id?, secret_file?);
    let (uid, certificate, topics, calls_per_second) = (uid?, certificate?, topics?, rate?);
    let access_key = match (id, secret_file) {
        (Some(id), Some(secret_file)) => Some(IssuedKeyFile { id, secret_file }),
        (None, None) => None,
        _ => {
            let problem = "has one of access_key_id and secret_file without the other";
            return table.wrong(r, problem, "write both, or neither");
        }
    };
    if token_file.is_none() && access_key.is_none() && uid.is_none() && certificate.is_none() {
        let remedy = "write token_file, access_key_id with secret_file, uid, or certificate";
        return table.wrong(r, "has no proof, so nothing could be this caller", remedy);
    }
    Some(Caller {
        name,
        token_file,
        access_key,
        uid,
        certificate,
        topics,
        calls_per_second,
        weight: weight?,
        spool_share: spool_share?,
        budget: budget?,
    })
}

/// Which callers are counted apart, and which budgets are for which of them.
pub(super) fn callers_are_counted(
    r: &mut Reader<'_>,
    billing: &mut Billing,
    callers: &[Caller],
    most: usize,
) {
    for caller in callers {
        let Some(name) = &caller.budget else { continue };
        if let Some(budget) = billing.budgets.iter_mut().find(|budget| budget.name == *name) {
            budget.callers.push(caller.name.as_str().into());
        } else {
            let problem = format!("has {} with the budget {name}, which is none", caller.name);
            r.conflict("callers", problem, "name one of [[billing.budgets]]");
        }
    }
    let (with_budget, others): (Vec<_>, Vec<_>) =
        callers.iter().partition(|caller| caller.budget.is_some());
    // Were one of them counted as `other`, its budget would miss it.
    let most = most.max(with_budget.len());
    let named = with_budget.into_iter().chain(others).take(most);
    billing.callers = named.map(|caller| caller.name.as_str().into()).collect();
}

/// It becomes a label.
fn caller_name(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text == "other" {
        let problem = "is what all callers without series of their own are counted as";
        return Err(ValueError::new(problem, "write another name"));
    }
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ValueError::new("is not a caller's name", "write 1 to 64 of A-Z a-z 0-9 . - _"))
}

fn key_id(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    if PROVIDERS_KEYS.iter().any(|start| text.starts_with(start)) {
        let remedy = "issue one of your own, such as orders-1, that begins with other letters";
        return Err(ValueError::new(
            "is a key of the provider's, which only tollgate holds",
            remedy,
        ));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if (1..=128).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ValueError::new("is not the id of an access key", "write 1 to 128 of A-Z a-z 0-9 . - _"))
}

fn uid(raw: &Raw) -> Result<u32, ValueError> {
    parse::whole(raw, &(0..=u32::MAX))
}

/// A name that a certificate can have: what has a colon is a URI, compared as it is, and no DNS name has one.
fn certificate_name(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let is_uri = text.split_once(':').is_some_and(|(scheme, rest)| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        !rest.is_empty()
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(fits)
            && rest.chars().all(|c| c.is_ascii_graphic())
    });
    let is_dns = !text.starts_with('.')
        && !text.ends_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    match (1..=2_048).contains(&text.len()) {
        true if is_uri => Ok(text.to_owned()),
        true if is_dns => Ok(text.to_ascii_lowercase()),
        _ => Err(ValueError::new(
            "is not a name of a certificate",
            "write a DNS name without *, or a URI: \"spiffe://cluster.local/ns/shop/sa/orders\"",
        )),
    }
}

fn rate(raw: &Raw) -> Result<u32, ValueError> {
    parse::whole(raw, &(1..=1_000_000))
}

/// Certificates prove callers where clients may show one.
pub(super) fn certificates_fit(r: &mut Reader<'_>, callers: &[Caller], tls: Option<&TlsFiles>) {
    let by_certificate = callers.iter().find(|caller| caller.certificate.is_some());
    if let Some(caller) = by_certificate
        && tls.is_none_or(|tls| tls.client_ca.is_none())
    {
        let problem =
            format!("has {} with a certificate, and listen.tls.client_ca is not set", caller.name);
        let remedy = "set listen.tls.certificate, listen.tls.key and listen.tls.client_ca";
        r.conflict("callers", problem, remedy);
    }
}

/// The server for SDKs beside callers and addresses.
pub(super) fn sdk_fits(r: &mut Reader<'_>, sdk: &Sdk, callers: &[Caller], listen: &Listen) {
    if !sdk.enabled {
        return;
    }
    let has_keys = callers.iter().any(|caller| caller.access_key.is_some());
    if sdk.accept == SdkAccept::Issued && !has_keys {
        let problem = "is \"issued\", and no caller has an access key";
        let remedy = "write [[callers]] with access_key_id and secret_file";
        r.conflict("sdk.accept", problem, remedy);
    }
    let own = if sdk.listen.is_empty() { &listen.publish } else { &sdk.listen };
    let is_near = |address: &Address| match address {
        Address::Tcp(tcp) => tcp.ip().is_loopback(),
        Address::Unix(_) => true,
    };
    if sdk.accept == SdkAccept::Any && !own.iter().all(is_near) {
        let problem = "is \"any\", and others than this pod reach its addresses";
        r.conflict("sdk.accept", problem, "write \"issued\", or a loopback address in sdk.listen");
    }
    let mut names = HashSet::new();
    if !sdk.actions.iter().all(|action| names.insert(&*action.name)) {
        r.conflict("sdk.actions", "names an operation twice", "leave one");
    }
    for address in &sdk.listen {
        let is_free_port = matches!(address, Address::Tcp(tcp) if tcp.port() == 0);
        if !is_free_port && listen.publish.contains(address) {
            let remedy = "leave sdk.listen empty, or give it an address of its own";
            r.conflict("sdk.listen", "names an address of listen.publish", remedy);
        }
    }
}
