//! `tollgate messages`: what is kept, of a running sidecar or of a stopped one.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{exit, runtime};
use crate::config::{Config, Flags};
use crate::control::{Changed, Listing, MAX_LISTED};
use crate::message::MessageId;
use crate::sidecar;
use crate::spool::{Brief, Change, Listed, OpenError, Reason, Selection, Spool, Which};

/// What a running sidecar may take for an answer.
const ANSWER: Duration = Duration::from_mins(1);

/// List, show, replay or drop kept messages and dead letters
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate messages list --state dead --config tollgate.toml\n  \
    tollgate messages replay --reason refused --topic 'Alarm/*'\n  \
    tollgate messages drop 01a2082df4757088bbc9b040e1f84a7d\n\n\
    Asks a running sidecar over its control socket, or opens the spool of a stopped one.")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    flags: Flags,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table", global = true)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List messages, oldest first
    List {
        #[command(flatten)]
        which: Selected,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one message with its payload
    Show {
        /// Its id
        id: String,
    },
    /// Try dead letters once more
    Replay {
        #[command(flatten)]
        which: Selected,
    },
    /// Drop dead letters, or queued messages that are named or asked for with --state queued
    Drop {
        #[command(flatten)]
        which: Selected,
    },
}

#[derive(Debug, clap::Args)]
struct Selected {
    /// These messages
    ids: Vec<String>,
    /// Topics that match a pattern, such as 'Alarm/*'
    #[arg(long, value_name = "PATTERN")]
    topic: Option<String>,
    /// Dead letters of this reason
    #[arg(long, value_enum)]
    reason: Option<Reason>,
    /// Messages in this state
    #[arg(long, value_enum)]
    state: Option<Which>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl From<Selected> for Selection {
    fn from(which: Selected) -> Self {
        let Selected { ids, topic, reason, state, all } = which;
        Self { ids, topic, reason, state, all }
    }
}

pub(super) fn run(args: Args) -> ExitCode {
    let config = match args.flags.load() {
        Ok(loaded) => loaded.config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return exit::BAD_CONFIG.into();
        }
    };
    let done = runtime(1)
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(carry_out(args.verb, &config)))
        .and_then(|said| print(&said, args.output));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("tollgate messages: {problem}");
            exit::FAILED.into()
        }
    }
}

/// What there is to print.
enum Said {
    Messages(Vec<Listed>),
    Message(Box<Listed>),
    Changed(&'static str, usize),
}

async fn carry_out(verb: Verb, config: &Config) -> Result<Said, String> {
    for path in sidecar::control_sockets(config) {
        if let Ok(stream) = UnixStream::connect(&path).await {
            return Running { stream, path }.carry_out(verb).await;
        }
    }
    let Some(spool) = &config.spool else {
        return Err("nothing is kept (spool.store = \"none\")".to_owned());
    };
    if !spool.path.exists() {
        return Err(format!("there is no spool at {}", spool.path.display()));
    }
    let opened = Spool::open(sidecar::spool_options(spool, &config.idempotency)).await;
    let spool = opened.map_err(|error| match error {
        OpenError::Taken(_) => {
            format!("{error}, and its control socket (listen.control) does not answer")
        }
        error @ OpenError::Io { .. } => error.to_string(),
    })?;
    let said = stopped(verb, &spool).await;
    spool.flush().await;
    said
}

// === a stopped sidecar ===

async fn stopped(verb: Verb, spool: &Spool) -> Result<Said, String> {
    match verb {
        Verb::List { which, limit } => Ok(Said::Messages(spool.select(&which.into(), None, limit))),
        Verb::Show { id } => {
            let id: MessageId = id.parse().map_err(|_| format!("{id:?} is no message id"))?;
            let found = spool.show(id).await.ok_or("no message of this id is kept")?;
            Ok(Said::Message(Box::new(found)))
        }
        Verb::Replay { which } => {
            let selection = some(which)?;
            let meant = |brief: &Brief| selection.means_dead(brief);
            let again = Change::Replayed(Timestamp::now());
            Ok(Said::Changed("replayed", spool.change(&meant, &again, &|_| ()).await))
        }
        Verb::Drop { which } => {
            let selection = some(which)?;
            let meant = |brief: &Brief| selection.means_droppable(brief);
            Ok(Said::Changed("dropped", spool.change(&meant, &Change::Forgotten, &|_| ()).await))
        }
    }
}

/// Whoever means everything says so.
fn some(which: Selected) -> Result<Selection, String> {
    let selection = Selection::from(which);
    if selection.is_empty() {
        return Err(
            "nothing is selected: name ids, --topic, --reason, --state, or --all".to_owned()
        );
    }
    Ok(selection)
}

// === a running one ===

struct Running {
    stream: UnixStream,
    path: PathBuf,
}

impl Running {
    async fn carry_out(self, verb: Verb) -> Result<Said, String> {
        let text = |value: Result<String, serde_json::Error>| value.map_err(|e| e.to_string());
        match verb {
            Verb::List { which, limit } => {
                let limit = limit.min(MAX_LISTED);
                let asked = Listing { selection: which.into(), after: None, limit };
                let body = text(serde_json::to_string(&asked))?;
                Ok(Said::Messages(self.ask("POST", "/messages/list", body).await?))
            }
            Verb::Show { id } => {
                let path = format!("/messages/{id}");
                Ok(Said::Message(Box::new(self.ask("GET", &path, String::new()).await?)))
            }
            Verb::Replay { which } => {
                let body = text(serde_json::to_string(&some(which)?))?;
                let changed: Changed = self.ask("POST", "/messages/replay", body).await?;
                Ok(Said::Changed("replayed", changed.messages))
            }
            Verb::Drop { which } => {
                let body = text(serde_json::to_string(&some(which)?))?;
                let changed: Changed = self.ask("POST", "/messages/drop", body).await?;
                Ok(Said::Changed("dropped", changed.messages))
            }
        }
    }

    async fn ask<T: for<'de> serde::Deserialize<'de>>(
        self,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<T, String> {
        let socket = self.path.display().to_string();
        let answer = timeout(ANSWER, self.exchange(method, path, body)).await;
        let (status, body) = answer.map_err(|_| format!("{socket} does not answer"))??;
        if !(200..300).contains(&status) {
            let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
            return Err(problem["detail"].as_str().unwrap_or("it refuses").to_owned());
        }
        serde_json::from_slice(&body).map_err(|error| format!("{socket} answers oddly: {error}"))
    }

    async fn exchange(
        self,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<(u16, Bytes), String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let (mut sender, driver) =
            handshake(TokioIo::new(self.stream)).await.map_err(|e| said(&e))?;
        tokio::spawn(async move { drop(driver.await) });
        let request = Request::builder().method(method).uri(path).header("host", "control");
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| said(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| said(&e))?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|e| said(&e))?;
        Ok((status, body.to_bytes()))
    }
}

// === printing ===

/// Whoever reads may have seen enough: that is no error.
fn print(said: &Said, output: Output) -> Result<(), String> {
    match write(said, output, &mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn write(said: &Said, output: Output, to: &mut impl Write) -> io::Result<()> {
    match (said, output) {
        (Said::Messages(messages), Output::Json) => {
            messages.iter().try_for_each(|listed| json(listed, to))
        }
        (Said::Message(listed), Output::Json) => json(listed, to),
        (Said::Changed(_, messages), Output::Json) => writeln!(to, "{{\"Messages\":{messages}}}"),
        (Said::Messages(messages), Output::Table) => {
            writeln!(
                to,
                "{:32}  {:9}  {:24}  {:>5}  {:>6}  REASON",
                "ID", "STATUS", "TOPIC", "TRIES", "AGE"
            )?;
            messages.iter().try_for_each(|listed| row(listed, to))
        }
        (Said::Message(listed), Output::Table) => {
            let shown = serde_json::to_value(&**listed).unwrap_or_default();
            let fields = shown.as_object().into_iter().flatten();
            fields.into_iter().try_for_each(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                writeln!(to, "{name:14} {text}")
            })
        }
        (Said::Changed(done, messages), Output::Table) => writeln!(to, "{messages} {done}"),
    }
}

fn json(listed: &Listed, to: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *to, listed)?;
    writeln!(to)
}

fn row(listed: &Listed, to: &mut impl Write) -> io::Result<()> {
    let status = match listed.status {
        Which::Queued => "queued",
        Which::Dead => "dead",
        Which::Delivered => "delivered",
    };
    let reason = match listed.reason {
        Some(Reason::Refused) => "refused",
        Some(Reason::Expired) => "expired",
        Some(Reason::Unknown) => "unknown",
        None => "",
    };
    let age = Timestamp::now().duration_since(listed.accepted_at).as_secs();
    let age = match age {
        ..120 => format!("{age}s"),
        120..7_200 => format!("{}m", age / 60),
        _ => format!("{}h", age / 3_600),
    };
    let (id, topic, tries) = (&listed.id, &listed.topic, listed.attempts);
    let code = listed.code.as_deref().unwrap_or_default();
    let line = format!("{id:32}  {status:9}  {topic:24}  {tries:>5}  {age:>6}  {reason} {code}");
    writeln!(to, "{}", line.trim_end())
}
