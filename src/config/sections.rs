//! Each section, key by key: name, default, check. This is the table of all settings.
//!
//! A section reads all its keys before it gives up on one, so that every mistake is found.

use std::num::NonZero;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;

use super::billing::billing;
use super::checks;
use super::error::ValueError;
use super::fleet::fleet;
use super::parse::{self, Raw};
use super::read::Reader;
use super::upstream::upstream;
use super::{
    Address, Ceilings, Config, Drain, Endpoint, Idempotency, Keys, Listen, LogFormat,
    PUBLISHED_ACCOUNT, PUBLISHED_EGRESS_IP, Publish, Retry, Runtime, Spool, Store, Telemetry,
    Topics, Unanswered, uri,
};
use crate::answer::{Codes, Verdict};
use crate::message::TopicPattern;

/// The shortest duration that is not a mistake: a bound of nothing lets nothing happen.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_hours(1);
/// hyper's buffer for a request head cannot be smaller.
const SMALLEST_HEADER: u64 = 8 * bytesize::KIB;
/// More than any process may have open.
pub(super) const MOST_CONNECTIONS: u32 = 65_536;

/// Reads everything; `None` where there was a mistake.
pub(super) fn config(r: &mut Reader<'_>) -> Option<Config> {
    let listen = listen(r);
    let publish = publish(r);
    let upstream = upstream(r);
    let keys = keys(r);
    let ceilings = ceilings(r, upstream.as_ref().map(|upstream| &upstream.endpoint));
    let fleet = fleet(r, ceilings.as_ref(), upstream.as_ref());
    let retry = retry(r);
    let spool = spool(r, fleet.as_ref().map(Option::is_some));
    let idempotency = idempotency(r);
    let topics = topics(r);
    let billing = billing(r);
    let telemetry = telemetry(r);
    let drain = drain(r, spool.as_ref(), fleet.as_ref().map(Option::is_some));
    let runtime = runtime(r);
    if let (Some(publish), Some(upstream)) = (&publish, &upstream) {
        checks::payload_fits(r, publish, upstream);
    }
    Some(Config {
        listen: listen?,
        publish: publish?,
        upstream: upstream?,
        keys: keys?,
        ceilings: ceilings?,
        fleet: fleet?,
        retry: retry?,
        spool: spool?,
        idempotency: idempotency?,
        topics: topics?,
        billing: billing?,
        telemetry: telemetry?,
        drain: drain?,
        runtime: runtime?,
    })
}

fn listen(r: &mut Reader<'_>) -> Option<Listen> {
    let publish = r.list("listen.publish", "127.0.0.1:8080", true, checks::address);
    let telemetry = r.value("listen.telemetry", "0.0.0.0:9464", checks::socket_address);
    let control = r.value("listen.control", "unix:/run/tollgate/control.sock", control);
    let listen = Listen { publish: publish?, telemetry: telemetry?, control: control? };
    checks::doors_differ(r, &listen);
    Some(listen)
}

/// A Unix socket, or `none`.
fn control(raw: &Raw) -> Result<Option<PathBuf>, ValueError> {
    if raw.text()? == "none" {
        return Ok(None);
    }
    match checks::address(raw)? {
        Address::Unix(path) => Ok(Some(path)),
        Address::Tcp(_) => Err(ValueError::new(
            "is not a Unix socket",
            "write \"unix:/run/tollgate/control.sock\", or \"none\"",
        )),
    }
}

fn publish(r: &mut Reader<'_>) -> Option<Publish> {
    let wait = r.duration("publish.wait", "5s", SHORTEST..=Duration::from_mins(1));
    let max_payload = r.size("publish.max_payload", "48KiB", 1..=64 * bytesize::KIB);
    let ratelimit_headers = r.boolean("publish.ratelimit_headers", "true");
    let max_waiting = r.count("publish.max_waiting", "4096", 1..=1_000_000);
    let max_connections = r.count("publish.max_connections", "8192", 1..=MOST_CONNECTIONS);
    let max_header = r.size("publish.max_header", "16KiB", SMALLEST_HEADER..=bytesize::MIB);
    let header_timeout = r.duration("publish.header_timeout", "5s", SHORTEST..=HOUR);
    let body_timeout = r.duration("publish.body_timeout", "10s", SHORTEST..=HOUR);
    let idle_timeout = r.duration("publish.idle_timeout", "75s", SHORTEST..=HOUR);
    Some(Publish {
        wait: wait?,
        max_payload: max_payload?,
        ratelimit_headers: ratelimit_headers?,
        max_waiting: max_waiting?,
        max_connections: max_connections?,
        max_header: max_header?,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        idle_timeout: idle_timeout?,
    })
}

#[derive(Clone, Copy)]
enum KeySource {
    Env,
    File,
    Uri,
    Later,
}

fn keys(r: &mut Reader<'_>) -> Option<Keys> {
    let source = r.value("keys.source", "env", |raw| {
        use KeySource::{Env, File, Later, Uri};
        let choices = [
            ("env", Env),
            ("file", File),
            ("uri", Uri),
            ("auto", Later),
            ("oidc", Later),
            ("ecs", Later),
            ("role", Later),
            ("cli", Later),
        ];
        match parse::choice(raw, &choices)? {
            Later => Err(ValueError::new(
                "comes with a later release of tollgate",
                "write \"env\", \"file\" or \"uri\"",
            )),
            source => Ok(source),
        }
    });
    let path = r.value("keys.path", "/var/run/secrets/tollgate", path);
    let poll = r.duration("keys.poll", "2s", Duration::from_millis(10)..=HOUR);
    let uri = r.optional("keys.uri", |raw| uri::credentials(raw.text()?));
    match source? {
        KeySource::Env => Some(Keys::Env),
        KeySource::File => Some(Keys::File { path: path?, poll: poll? }),
        KeySource::Uri => {
            let uri = uri?;
            if uri.is_none() {
                r.clash(
                    "keys.uri",
                    "is required where keys.source is \"uri\"",
                    "set keys.uri or ALIBABA_CLOUD_CREDENTIALS_URI",
                );
            }
            Some(Keys::Uri { uri: uri? })
        }
        KeySource::Later => None,
    }
}

fn ceilings(r: &mut Reader<'_>, endpoint: Option<&Endpoint>) -> Option<Ceilings> {
    let is_provider = endpoint.is_some_and(Endpoint::is_provider);
    let default = |published: u32| {
        if is_provider { published.to_string() } else { "none".to_owned() }
    };
    let account = r.value("ceilings.account", &default(PUBLISHED_ACCOUNT), ceiling);
    let egress_ip = r.value("ceilings.egress_ip", &default(PUBLISHED_EGRESS_IP), ceiling);
    let retry_share = r.value("ceilings.retry_share", "0.2", parse::share);
    let unanswered = unanswered(r);
    let allowed = r.boolean("ceilings.allow_above_published", "false");
    let above = |ceiling: Option<Option<u32>>, published| {
        is_provider && ceiling.is_some_and(|ceiling| ceiling.is_none_or(|n| n > published))
    };
    let above_account = above(account, PUBLISHED_ACCOUNT);
    let above_egress_ip = above(egress_ip, PUBLISHED_EGRESS_IP);
    if allowed == Some(false) {
        for (key, is_above, published) in [
            ("ceilings.account", above_account, PUBLISHED_ACCOUNT),
            ("ceilings.egress_ip", above_egress_ip, PUBLISHED_EGRESS_IP),
        ] {
            if is_above {
                checks::above_published(r, key, published);
            }
        }
    }
    Some(Ceilings {
        account: account?,
        egress_ip: egress_ip?,
        retry_share: retry_share?,
        unanswered: unanswered?,
        above_published: allowed? && (above_account || above_egress_ip),
    })
}

/// How long a call without an answer counts.
fn unanswered(r: &mut Reader<'_>) -> Option<Unanswered> {
    let min = r.duration("ceilings.unanswered_min", "10s", Duration::ZERO..=HOUR);
    let max = r.duration("ceilings.unanswered_max", "5m", Duration::from_secs(1)..=HOUR);
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        let problem = format!("is longer than ceilings.unanswered_max ({})", parse::human(max));
        r.clash("ceilings.unanswered_min", problem, "write a shorter one");
    }
    Some(Unanswered { min: min?, max: max? })
}

/// A number of calls per second, or `none`.
fn ceiling(raw: &Raw) -> Result<Option<u32>, ValueError> {
    const CALLS: RangeInclusive<u32> = 1..=1_000_000;
    if raw.text().is_ok_and(|text| text == "none") {
        return Ok(None);
    }
    parse::whole(raw, &CALLS).map(Some).map_err(|ValueError { problem, remedy }| {
        ValueError::new(problem, format!("{remedy} (calls per second), or \"none\""))
    })
}

fn retry(r: &mut Reader<'_>) -> Option<Retry> {
    let batch = r.count("retry.batch", "100", 1..=10_000);
    let base = r.duration("retry.base", "200ms", SHORTEST..=HOUR);
    let cap = r.duration("retry.cap", "30s", SHORTEST..=HOUR);
    let max_age = r.duration("retry.max_age", "24h", Duration::from_secs(1)..=HOUR * 24 * 30);
    let unknown = r.choice("retry.unknown", "retry", &[("retry", false), ("park", true)]);
    let unknown_tries = r.value("retry.unknown_tries", "2", |raw| parse::whole(raw, &(0..=1_000)));
    let park = r.list("retry.park", "[]", false, checks::pattern);
    let codes = r.value("retry.codes", "{}", codes);
    if let (Some(base), Some(cap)) = (base, cap)
        && base > cap
    {
        let problem = format!("is longer than retry.cap ({})", parse::human(cap));
        r.clash("retry.base", problem, "write a shorter one");
    }
    let mut park = park?;
    if unknown? {
        park = vec![TopicPattern::new("*")];
    }
    Some(Retry {
        batch: batch?,
        base: base?,
        cap: cap?,
        max_age: max_age?,
        unknown_tries: unknown_tries?,
        park,
        codes: codes?,
    })
}

/// `{ SomeCode = "retry" }`, or `SomeCode=retry, …` outside a file: what codes are to mean.
fn codes(raw: &Raw) -> Result<Codes, ValueError> {
    const REMEDY: &str =
        "write { SomeCode = \"retry\" }, or \"throttled\", \"unknown\" or \"refused\"";
    let wrong = || ValueError::new("does not say what codes mean", REMEDY);
    let rule = |code: &str, means: &str| {
        let means = match means.trim() {
            "retry" => Verdict::Failed,
            "throttled" => Verdict::Throttled { retry_after: None },
            "unknown" => Verdict::Unknown,
            "refused" => Verdict::Refused,
            _ => return Err(wrong()),
        };
        let code = code.trim();
        let plain = !code.is_empty() && code.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
        if plain { Ok((code.into(), means)) } else { Err(wrong()) }
    };
    if let Value::Dict(_, codes) = &raw.value {
        let rules = codes.iter().map(|(code, means)| rule(code, means.as_str().ok_or_else(wrong)?));
        return Ok(Codes::new(rules.collect::<Result<_, _>>()?));
    }
    let text = raw.text()?.trim().trim_start_matches('{').trim_end_matches('}');
    let rules = text.split(',').filter(|rule| !rule.trim().is_empty());
    let bare = |text: &str| text.trim().trim_matches('"').to_owned();
    let rules = rules.map(|text| {
        let (code, means) = text.split_once('=').ok_or_else(wrong)?;
        rule(&bare(code), &bare(means))
    });
    Ok(Codes::new(rules.collect::<Result<_, _>>()?))
}

#[expect(clippy::option_option, reason = "outside: is it right; inside: is there one")]
fn spool(r: &mut Reader<'_>, has_fleet: Option<bool>) -> Option<Option<Spool>> {
    let choices = [("disk", Some(Store::Disk)), ("redis", Some(Store::Redis)), ("none", None)];
    let store = r.choice("spool.store", "disk", &choices);
    if store == Some(Some(Store::Redis)) && has_fleet == Some(false) {
        let problem = "is \"redis\", and fleet.url names no Redis";
        r.clash("spool.store", problem, "set fleet.url, or write \"disk\"");
    }
    let path = r.value("spool.path", "/var/lib/tollgate/spool", path);
    let max_bytes = r.size("spool.max_bytes", "256MiB", bytesize::MIB..=bytesize::TIB);
    let max_messages = r.count("spool.max_messages", "200000", 1..=10_000_000);
    let keep_receipts = r.duration("spool.keep_receipts", "10m", SHORTEST..=HOUR * 24);
    let (path, max_bytes) = (path?, max_bytes? as u64);
    let (max_messages, keep_receipts) = (max_messages?, keep_receipts?);
    store.map(|store| {
        let store = store?;
        Some(Spool { store, path, max_bytes, max_messages, keep_receipts })
    })
}

fn idempotency(r: &mut Reader<'_>) -> Option<Idempotency> {
    let keep = r.duration("idempotency.keep", "10m", SHORTEST..=HOUR * 24);
    let max_keys = r.count("idempotency.max_keys", "100000", 1..=10_000_000);
    Some(Idempotency { keep: keep?, max_keys: max_keys? })
}

fn topics(r: &mut Reader<'_>) -> Option<Topics> {
    Some(Topics { allow: r.list("topics.allow", "[]", false, checks::pattern)? })
}

fn telemetry(r: &mut Reader<'_>) -> Option<Telemetry> {
    let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let log = r.choice("telemetry.log", "json", &formats);
    let level = r.value("telemetry.level", "info", checks::level);
    let max_topics = r.count("telemetry.max_topics", "50", 1..=1_000);
    Some(Telemetry { log: log?, level: level?, max_topics: max_topics? })
}

fn drain(
    r: &mut Reader<'_>,
    spool: Option<&Option<Spool>>,
    has_fleet: Option<bool>,
) -> Option<Drain> {
    let grace = r.duration("drain.grace", "20s", SHORTEST..=HOUR);
    let accept_for = r.duration("drain.accept_for", "0s", Duration::ZERO..=HOUR);
    let handoff = r.boolean("drain.handoff", "false");
    if handoff == Some(true) {
        if has_fleet == Some(false) {
            let problem = "is true, and fleet.url names no Redis to hand messages to";
            r.clash("drain.handoff", problem, "set fleet.url, or write false");
        }
        if matches!(spool, Some(None)) {
            let problem = "is true, and nothing is kept (spool.store is \"none\")";
            r.clash("drain.handoff", problem, "set spool.store, or write false");
        }
    }
    Some(Drain { grace: grace?, accept_for: accept_for?, handoff: handoff? })
}

fn runtime(r: &mut Reader<'_>) -> Option<Runtime> {
    let threads = r.count("runtime.threads", "0", 0..=1_024)?;
    if threads > 0 {
        return Some(Runtime { threads });
    }
    // It knows the CPU limit of a container.
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    r.show("runtime.threads", format!("0 (here {threads})"));
    Some(Runtime { threads })
}

/// A path that could name something.
pub(super) fn path(raw: &Raw) -> Result<PathBuf, ValueError> {
    let text = raw.text()?;
    if text.is_empty() || text.contains(char::is_control) {
        return Err(ValueError::new("is not a path", "write the path of a file or folder"));
    }
    Ok(PathBuf::from(text))
}
