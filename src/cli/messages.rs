//! `tollgate messages`: the stored messages of a running or a stopped sidecar.

use std::io::{self, Write};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;

use super::client::SidecarClient;
use super::run::{MessagesFormat, VerbError, block_on, print};
use super::{age, count, deliver};
use crate::config::{self, Config, Flags, Store};
use crate::control::{Changed, Listing, MAX_LISTED};
use crate::message::MessageId;
use crate::sidecar;
use crate::spool::{
    Brief, Change, Listed, OpenError, Options, Reason, Selection, Spool, State, Which,
};

/// List, show, replay, drop or deliver stored messages and dead letters
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate messages list --state dead --config tollgate.toml\n  \
    tollgate messages replay --reason refused --topic 'Alarm/*'\n  \
    tollgate messages drop 01a2082df4757088bbc9b040e1f84a7d\n  \
    tollgate messages deliver --spool /mnt/claim/spool\n\n\
    Asks a running sidecar over its control socket, or opens the spool of a stopped one.")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: MessagesVerb,
    #[command(flatten)]
    flags: Flags,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table", global = true)]
    output: MessagesFormat,
}

#[derive(Debug, Subcommand)]
enum MessagesVerb {
    #[command(flatten)]
    Select(Action),
    Deliver(deliver::DeliverArgs),
}

#[derive(Debug, Subcommand)]
enum Action {
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
        /// The most messages
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
    /// Retry dead letters as new messages
    #[command(after_help = "Example:\n  tollgate messages replay --reason refused")]
    Replay {
        #[command(flatten)]
        which: Selected,
        /// Messages in this state: only dead letters can be replayed
        #[arg(long, value_parser = one_of(&[Which::Dead]))]
        state: Option<Which>,
    },
    /// Drop dead letters, or queued messages given by id or with --state queued
    #[command(after_help = "Example:\n  tollgate messages drop --reason expired --topic 'Alarm/*'")]
    Drop {
        #[command(flatten)]
        which: Selected,
        /// Messages in this state: only queued messages and dead letters can be dropped
        #[arg(long, value_parser = one_of(&[Which::Queued, Which::Dead]))]
        state: Option<Which>,
    },
}

/// Reads one of these states: messages in others can be listed, but not changed.
fn one_of(states: &[Which]) -> impl TypedValueParser<Value = Which> + use<> {
    let names = states.iter().filter_map(Which::to_possible_value);
    PossibleValuesParser::new(names).try_map(|name| Which::from_str(&name, false))
}

impl Action {
    /// Whether its selection is valid.
    fn check(&self) -> Result<(), String> {
        let selection = match self {
            Self::List { topic, .. } => Selection { topic: topic.clone(), ..Selection::default() },
            Self::Show { id } => Selection { ids: vec![id.clone()], ..Selection::default() },
            Self::Replay { which, state } | Self::Drop { which, state } => {
                not_empty(which.clone(), *state)?
            }
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
    /// All dead letters
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: Args) -> Result<(), VerbError> {
    let action = match args.verb {
        MessagesVerb::Select(action) => action,
        MessagesVerb::Deliver(deliver) => return deliver::run(&deliver, args.flags, args.output),
    };
    let config = args.flags.load_for_operator()?.config;
    // Before a sidecar is looked for: the same error, whether one runs or not.
    action.check().map_err(VerbError::Usage)?;
    let done = block_on(carry_out(action, &config))?;
    print(|to| write(&done, args.output, to))?;
    // Not on standard output: there each line is a message.
    if let ActionResult::Listed(_, more) = &done
        && let Some(text) = more_text(*more)
    {
        eprintln!("{text}");
    }
    if let ActionResult::Changed(change, Changed { expired: expired @ 1.., .. }) = &done {
        let expired = count(*expired as u64, "dead letter");
        eprintln!(
            "{expired} not {change}: the time to live (TTL) has ended, so tollgate does not send it"
        );
    }
    Ok(())
}

/// How many messages a list leaves out.
fn more_text(more: usize) -> Option<String> {
    let count = match more {
        0 => return None,
        1..MOST_COUNTED => count(more as u64, "more message"),
        _ => format!("at least {}", count(MOST_COUNTED as u64, "more message")),
    };
    Some(format!("{count} not shown: set --limit, or select fewer (--state, --topic, --reason)"))
}

/// The most messages that a list counts beyond those it shows: each is read, though not shown.
const MOST_COUNTED: usize = 10_000;

/// What an action results in.
enum ActionResult {
    /// The messages, and how many more there are, up to [`MOST_COUNTED`].
    Listed(Vec<Listed>, usize),
    Shown(Box<Listed>),
    /// "replayed" or "dropped", and how many.
    Changed(&'static str, Changed),
}

async fn carry_out(action: Action, config: &Config) -> Result<ActionResult, String> {
    if let Some(sidecar) = SidecarClient::connect(config).await? {
        return running(action, sidecar).await;
    }
    let Some(spool) = &config.spool else {
        return Err("nothing is stored (spool.store = \"none\")".to_owned());
    };
    let options = sidecar::spool_options(spool, &config.idempotency, &config.runtime);
    if let (Store::Redis, Some(fleet)) = (spool.store, &config.fleet) {
        return shared(action, fleet, options).await;
    }
    // Of one that cannot be looked at, opening it says why.
    if matches!(spool.path.try_exists(), Ok(false)) {
        return Err(format!("there is no spool at {}", spool.path.display()));
    }
    let opened = Spool::open(options).await;
    let spool = opened.map_err(|error| match error {
        OpenError::Taken(_) => {
            format!("{error}, and its control socket (listen.control) does not answer")
        }
        error => error.to_string(),
    })?;
    let done = stopped(action, &spool).await;
    spool.flush().await;
    done
}

// === a stopped sidecar ===

async fn stopped(action: Action, spool: &Spool) -> Result<ActionResult, String> {
    match action {
        Action::List { state, topic, reason, limit } => {
            let selection = Selection { topic, reason, state, ..Selection::default() };
            let picked = selection.pick().map_err(|error| error.to_string())?;
            let found = spool.select(&picked, None, limit);
            let after = found.last().and_then(|listed| listed.id.parse().ok());
            let more = spool.select(&picked, after, MOST_COUNTED).len();
            Ok(ActionResult::Listed(found, more))
        }
        Action::Show { id } => {
            let id: MessageId = id.parse().map_err(|_| format!("{id:?} is no message id"))?;
            let found = spool.show(id).await.ok_or("no message with this id is stored")?;
            Ok(ActionResult::Shown(Box::new(found)))
        }
        Action::Replay { which, state } => {
            let picked = not_empty(which, state)?.pick().map_err(|error| error.to_string())?;
            let meant = |brief: &Brief| picked.means_replayable(brief);
            let again = |brief: &Brief| spool.note(brief.id, Change::Replayed(Timestamp::now()));
            let expired = spool.count_expired(&picked);
            let replayed = spool.change(&meant, &again, &|_, _| ()).await;
            let changed = Changed { expired, ..Changed::from(&replayed) };
            Ok(ActionResult::Changed("replayed", changed))
        }
        Action::Drop { which, state } => {
            let picked = not_empty(which, state)?.pick().map_err(|error| error.to_string())?;
            let meant = |brief: &Brief| picked.means_droppable(brief);
            // A call for a queued message may have been in flight when its sidecar ended.
            let doubt = |brief: &Brief| matches!(brief.state, State::Queued { .. }).into();
            let note = |brief: &Brief| spool.note(brief.id, Spool::dropped(doubt(brief)));
            let dropped = spool.change(&meant, &note, &|_, _| ()).await;
            Ok(ActionResult::Changed("dropped", Changed::from(&dropped)))
        }
    }
}

/// The same in Redis: all messages of the account can be shown, and those whose sidecar has ended can be
/// changed.
async fn shared(
    action: Action,
    fleet: &config::Fleet,
    options: Options,
) -> Result<ActionResult, String> {
    if matches!(action, Action::List { .. } | Action::Show { .. }) {
        let spool = Spool::look(fleet, options).await.map_err(|error| error.to_string())?;
        let done = stopped(action, &spool).await;
        spool.close().await;
        return done;
    }
    eprintln!("checking which sidecars have ended: up to 17 s");
    let taken = Spool::take_over(fleet, options).await;
    let (spool, held) = taken.map_err(|error| error.to_string())?;
    let done = stopped(action, &spool).await;
    spool.close().await;
    match done {
        Ok(ActionResult::Changed(change, Changed { messages: 0, .. })) if held > 0 => Err(format!(
            "0 {change}: running sidecars own {}. Run the command where they run (kubectl exec).",
            count(held, "message")
        )),
        done => done,
    }
}

/// An empty selection is refused, so that all are never changed by mistake.
fn not_empty(which: Selected, state: Option<Which>) -> Result<Selection, String> {
    let Selected { ids, topic, reason, all } = which;
    let selection = Selection { ids, topic, reason, state, all };
    if selection.is_empty() {
        return Err(
            "nothing is selected: give ids, --topic, --reason, --state, or --all".to_owned()
        );
    }
    Ok(selection)
}

// === a running one ===

async fn running(action: Action, mut sidecar: SidecarClient) -> Result<ActionResult, String> {
    let sidecar = &mut sidecar;
    match action {
        Action::List { state, topic, reason, limit } => {
            let selection = Selection { topic, reason, state, ..Selection::default() };
            let found = list(sidecar, &selection, None, limit).await?;
            let after = found.last().and_then(|listed| listed.id.parse().ok());
            let more = list(sidecar, &selection, after, MOST_COUNTED).await?.len();
            Ok(ActionResult::Listed(found, more))
        }
        Action::Show { id } => {
            let body = sidecar.get(&format!("/messages/{id}")).await?;
            Ok(ActionResult::Shown(Box::new(sidecar.read(&body)?)))
        }
        Action::Replay { which, state } => {
            let selection = not_empty(which, state)?;
            Ok(ActionResult::Changed(
                "replayed",
                change(sidecar, "/messages/replay", &selection).await?,
            ))
        }
        Action::Drop { which, state } => {
            let selection = not_empty(which, state)?;
            Ok(ActionResult::Changed(
                "dropped",
                change(sidecar, "/messages/drop", &selection).await?,
            ))
        }
    }
}

/// Page by page, until there are enough or no more.
async fn list(
    sidecar: &mut SidecarClient,
    selection: &Selection,
    mut after: Option<MessageId>,
    limit: usize,
) -> Result<Vec<Listed>, String> {
    let mut found = Vec::new();
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

async fn change(
    sidecar: &mut SidecarClient,
    path: &str,
    selection: &Selection,
) -> Result<Changed, String> {
    let body = serde_json::to_string(selection).map_err(|error| error.to_string())?;
    let body = sidecar.send("POST", path, body).await?;
    sidecar.read(&body)
}

// === printing ===

fn write(done: &ActionResult, output: MessagesFormat, to: &mut impl Write) -> io::Result<()> {
    match (done, output) {
        (ActionResult::Listed(messages, _), MessagesFormat::Json) => {
            messages.iter().try_for_each(|listed| json(listed, to))
        }
        (ActionResult::Shown(listed), MessagesFormat::Json) => json(listed, to),
        (ActionResult::Changed(_, changed), MessagesFormat::Json) => json(changed, to),
        (ActionResult::Listed(messages, _), MessagesFormat::Table) => {
            writeln!(
                to,
                "{:32}  {:9}  {:17}  {:>8}  {:>4}  REASON",
                "ID", "STATUS", "TOPIC", "ATTEMPTS", "AGE"
            )?;
            messages.iter().try_for_each(|listed| row(listed, to))
        }
        (ActionResult::Shown(listed), MessagesFormat::Table) => {
            let shown = serde_json::to_value(&**listed).unwrap_or_default();
            let fields = shown.as_object().into_iter().flatten();
            fields.into_iter().try_for_each(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                writeln!(to, "{name:14} {text}")
            })
        }
        (ActionResult::Changed(change, Changed { messages, .. }), MessagesFormat::Table) => {
            writeln!(to, "{messages} {change}")
        }
    }
}

fn json(value: &impl serde::Serialize, to: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    writeln!(to)
}

fn row(listed: &Listed, to: &mut impl Write) -> io::Result<()> {
    let status = match listed.status {
        Which::Queued => "queued",
        Which::Dead => "dead",
        Which::Delivered => "delivered",
        Which::Dropped => "dropped",
        Which::Expired => "expired",
    };
    // The provider's code says more than "refused".
    let why = match (listed.reason, listed.code.as_deref()) {
        (Some(Reason::Refused), Some(code)) => code.to_owned(),
        (Some(Reason::Refused), None) => "refused".to_owned(),
        (Some(Reason::Expired), code) => format!("expired {}", code.unwrap_or_default()),
        (Some(Reason::Unknown), code) => format!("unknown {}", code.unwrap_or_default()),
        (None, _) => String::new(),
    };
    let age = age(listed.accepted_at);
    let (id, topic, why) = (&listed.id, cut(&listed.topic, 17), cut(&why, 20));
    let attempts = listed.attempts;
    let line = format!("{id:32}  {status:9}  {topic:17}  {attempts:>8}  {age:>4}  {why}");
    writeln!(to, "{}", line.trim_end())
}

/// Cut to the width of a column; `-o json` has the whole text.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
