//! `tollgate messages`: what is kept, of a running sidecar or of a stopped one.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;

use super::asking::Asking;
use super::{age, exit, runtime};
use crate::config::{Config, Flags, Fleet, Store};
use crate::control::{Changed, Listing, MAX_LISTED};
use crate::message::MessageId;
use crate::sidecar;
use crate::spool::{
    Brief, Change, Listed, OpenError, Options, Reason, Selection, Spool, State, Which,
};

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
    #[command(after_help = "Example:\n  tollgate messages list --state dead --topic 'Alarm/*'")]
    List {
        /// Messages in this state
        #[arg(long, value_enum)]
        state: Option<Which>,
        /// Topics that match a pattern, such as 'Alarm/*'
        #[arg(long, value_name = "PATTERN")]
        topic: Option<String>,
        /// Dead letters of this reason
        #[arg(long, value_enum)]
        reason: Option<Reason>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one message with its payload
    #[command(after_help = "Example:\n  \
        tollgate messages show 01a2082df4757088bbc9b040e1f84a7d -o json")]
    Show {
        /// Its id
        id: String,
    },
    /// Try dead letters once more
    #[command(after_help = "Example:\n  tollgate messages replay --reason refused")]
    Replay {
        #[command(flatten)]
        which: Selected,
    },
    /// Drop dead letters, or queued messages that are named or asked for with --state queued
    #[command(after_help = "Example:\n  tollgate messages drop --reason expired --topic 'Alarm/*'")]
    Drop {
        #[command(flatten)]
        which: Selected,
    },
}

impl Verb {
    /// Whether it could mean any message.
    fn check(&self) -> Result<(), String> {
        let selection = match self {
            Self::List { topic, .. } => Selection { topic: topic.clone(), ..Selection::default() },
            Self::Show { id } => Selection { ids: vec![id.clone()], ..Selection::default() },
            Self::Replay { which } | Self::Drop { which } => some(which.clone())?,
        };
        selection.pick().map(drop).map_err(|error| error.to_string())
    }
}

#[derive(Debug, Clone, clap::Args)]
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
    // A mistake is one whether a sidecar runs or not.
    if let Err(mistake) = args.verb.check() {
        eprintln!("tollgate messages: {mistake}");
        return exit::USAGE.into();
    }
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
    if let Some(sidecar) = Asking::connect(config).await? {
        return running(verb, sidecar).await;
    }
    let Some(spool) = &config.spool else {
        return Err("nothing is kept (spool.store = \"none\")".to_owned());
    };
    let options = sidecar::spool_options(spool, &config.idempotency);
    if let (Store::Redis, Some(fleet)) = (spool.store, &config.fleet) {
        return shared(verb, fleet, options).await;
    }
    if !spool.path.exists() {
        return Err(format!("there is no spool at {}", spool.path.display()));
    }
    let opened = Spool::open(options).await;
    let spool = opened.map_err(|error| match error {
        OpenError::Taken(_) => {
            format!("{error}, and its control socket (listen.control) does not answer")
        }
        error => error.to_string(),
    })?;
    let said = stopped(verb, &spool).await;
    spool.flush().await;
    said
}

// === a stopped sidecar ===

async fn stopped(verb: Verb, spool: &Spool) -> Result<Said, String> {
    match verb {
        Verb::List { state, topic, reason, limit } => {
            let selection = Selection { topic, reason, state, ..Selection::default() };
            let picked = selection.pick().map_err(|error| error.to_string())?;
            Ok(Said::Messages(spool.select(&picked, None, limit)))
        }
        Verb::Show { id } => {
            let id: MessageId = id.parse().map_err(|_| format!("{id:?} is no message id"))?;
            let found = spool.show(id).await.ok_or("no message of this id is kept")?;
            Ok(Said::Message(Box::new(found)))
        }
        Verb::Replay { which } => {
            let picked = some(which)?.pick().map_err(|error| error.to_string())?;
            let meant = |brief: &Brief| picked.means_dead(brief);
            let again = |brief: &Brief| spool.note(brief.id, Change::Replayed(Timestamp::now()));
            Ok(Said::Changed("replayed", spool.change(&meant, &again, &|_, _| ()).await))
        }
        Verb::Drop { which } => {
            let picked = some(which)?.pick().map_err(|error| error.to_string())?;
            let meant = |brief: &Brief| picked.means_droppable(brief);
            // A call for a queued message may have been under way when its sidecar ended.
            let doubt = |brief: &Brief| matches!(brief.state, State::Queued { .. });
            let note = |brief: &Brief| spool.note(brief.id, Spool::dropped(brief, doubt(brief)));
            Ok(Said::Changed("dropped", spool.change(&meant, &note, &|_, _| ()).await))
        }
    }
}

/// The same in Redis: all that the account keeps may be looked at, and what nobody has any more may be
/// changed.
async fn shared(verb: Verb, fleet: &Fleet, options: Options) -> Result<Said, String> {
    if matches!(verb, Verb::List { .. } | Verb::Show { .. }) {
        let spool = Spool::look(fleet, options).await.map_err(|error| error.to_string())?;
        let said = stopped(verb, &spool).await;
        spool.close().await;
        return said;
    }
    eprintln!("looking which sidecars are no more: up to 17 s");
    let taken = Spool::take_over(fleet, options).await;
    let (spool, held) = taken.map_err(|error| error.to_string())?;
    let said = stopped(verb, &spool).await;
    spool.close().await;
    match said {
        Ok(Said::Changed(done, 0)) if held > 0 => {
            Err(format!("0 {done}: other sidecars are running and hold {held} messages; ask them"))
        }
        said => said,
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

async fn running(verb: Verb, mut sidecar: Asking) -> Result<Said, String> {
    let sidecar = &mut sidecar;
    match verb {
        Verb::List { state, topic, reason, limit } => {
            let selection = Selection { topic, reason, state, ..Selection::default() };
            list(sidecar, selection, limit).await.map(Said::Messages)
        }
        Verb::Show { id } => {
            let body = sidecar.get(&format!("/messages/{id}")).await?;
            Ok(Said::Message(Box::new(sidecar.read(&body)?)))
        }
        Verb::Replay { which } => {
            Ok(Said::Changed("replayed", change(sidecar, "/messages/replay", which).await?))
        }
        Verb::Drop { which } => {
            Ok(Said::Changed("dropped", change(sidecar, "/messages/drop", which).await?))
        }
    }
}

/// A page at a time, until there are enough or no more.
async fn list(
    sidecar: &mut Asking,
    selection: Selection,
    limit: usize,
) -> Result<Vec<Listed>, String> {
    let (mut found, mut after) = (Vec::new(), None);
    while found.len() < limit {
        let limit = (limit - found.len()).min(MAX_LISTED);
        let listing = Listing { selection: selection.clone(), after, limit };
        let body = sidecar.get(&format!("/messages?{}", listing.query())).await?;
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let page: Vec<Listed> = lines.map(|line| sidecar.read(line)).collect::<Result<_, _>>()?;
        let is_last = page.len() < limit;
        after = page.last().and_then(|listed| listed.id.parse().ok());
        found.extend(page);
        if is_last || after.is_none() {
            break;
        }
    }
    Ok(found)
}

async fn change(sidecar: &mut Asking, path: &str, which: Selected) -> Result<usize, String> {
    let body = serde_json::to_string(&some(which)?).map_err(|error| error.to_string())?;
    let body = sidecar.ask("POST", path, body).await?;
    sidecar.read(&body).map(|changed: Changed| changed.messages)
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
                "{:32}  {:9}  {:20}  {:>5}  {:>4}  REASON",
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
        Which::Dropped => "dropped",
    };
    // The provider's code says more than that it refuses.
    let why = match (listed.reason, listed.code.as_deref()) {
        (Some(Reason::Refused), Some(code)) => code.to_owned(),
        (Some(Reason::Refused), None) => "refused".to_owned(),
        (Some(Reason::Expired), code) => format!("expired {}", code.unwrap_or_default()),
        (Some(Reason::Unknown), code) => format!("unknown {}", code.unwrap_or_default()),
        (None, _) => String::new(),
    };
    let age = age(listed.accepted_at);
    let (id, topic, why) = (&listed.id, cut(&listed.topic), cut(&why));
    let tries = listed.attempts;
    let line = format!("{id:32}  {status:9}  {topic:20}  {tries:>5}  {age:>4}  {why}");
    writeln!(to, "{}", line.trim_end())
}

/// What fits into a column; the whole is in `-o json`.
fn cut(text: &str) -> String {
    const COLUMN: usize = 20;
    if text.chars().count() <= COLUMN {
        return text.to_owned();
    }
    text.chars().take(COLUMN - 1).chain(['…']).collect()
}
