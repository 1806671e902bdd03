//! `tollgate emulator`: an emulated provider on this machine.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Stop;
use super::run::{VerbError, runtime};
use crate::emulator::{
    DEMO_KEY_ID, DEMO_KEY_SECRET, Emulator, EmulatorError, EmulatorOptions, FAULT_ACTIONS, Fault,
    KeyPair, MqttPayload, Over, parse_duration,
};
use crate::verification::known_codes;

/// Emulate ApsaraMQ for MQTT on this machine
///
/// Serves `SendMessage` the way the provider does: both signatures, its limits, its errors. It
/// blocks an address that exceeds its ceiling until DELETE /_emulator/blocked or POST
/// /_emulator/reset.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE, after_long_help = long_help())]
pub(super) struct EmulatorArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9460")]
    listen: SocketAddr,

    /// Ceiling of all calls per second; calls above it are throttled; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 1000)]
    account_qps: u32,

    /// Ceiling of calls per second from one address; an address above it is blocked; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 300)]
    egress_ip_qps: u32,

    /// Access keys, with :token for a temporary one [default: demo-key-id=demo-key-secret]
    #[arg(long, value_name = "ID=SECRET[:TOKEN]", value_delimiter = ',', value_parser = key)]
    keys: Vec<KeyPair>,

    /// How long keys live that the token service and the metadata service give out [default: as asked, 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    key_life: Option<Duration>,

    /// Broker that gets each accepted message, mqtt://[user:password@]host[:port]
    #[arg(long, value_name = "URL")]
    mqtt: Option<String>,

    /// Whether the broker gets payloads Base64-decoded
    #[arg(long, value_enum, default_value_t = PayloadArg::Decoded, requires = "mqtt")]
    mqtt_payload: PayloadArg,

    /// Wait before every answer, such as 20ms
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    latency: Duration,

    /// How calls over the account's ceiling are refused
    #[arg(long, value_enum, default_value_t = OverArg::ThrottlingUser)]
    over: OverArg,

    /// JSON list of faults to inject from the start, as for POST /_emulator/faults
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,

    /// Decides which calls a fault's probability hits
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

const EXAMPLE: &str = "Example: three of ten calls fail, at random; a broker gets the rest
  echo '[{\"code\":\"SystemOverFlow\",\"probability\":0.3}]' > faults.json
  tollgate emulator --keys my-id=my-secret --faults faults.json --mqtt mqtt://127.0.0.1:1883
  curl -s http://127.0.0.1:9460/_emulator/report

--help explains the fields of a fault.";

const FAULTS: &str = "Fields of a fault; the first of the list that hits a call is played:
  code            what is answered, one of the codes below; another one only with a status
  status          HTTP status instead of the code's own, 200 to 599
  probability     share of the calls that it hits, 0 to 1 [default: 1]
  for             how long it lasts, from when it is set, such as \"10s\" [default: until replaced]
  times           how many calls it hits [default: no limit]
  topic           parent topic or whole topic that it hits [default: all]
  action          operation that it hits [default: SendMessage], one of those below
  latency         wait before the answer, such as \"250ms\"; without a code the call then succeeds
  retry_after_ms  sent as x-acs-retry-after
  then            what happens [default: answer]:
    answer              the code is answered
    close               the connection closes without an answer; the message is not taken
    hang                no answer, until the caller gives up; the message is not taken
    empty-msgid         200 with an empty MsgId; the message is not taken
    html-503            a page of a proxy on the way; the message is not taken
    deliver-then-close  the message is taken, and the connection closes without an answer";

/// `--help` names whatever a list of faults may have.
fn long_help() -> String {
    let example = EXAMPLE.rsplit_once("\n\n").map_or(EXAMPLE, |(example, _)| example);
    let codes: Vec<_> = known_codes().map(|(code, status)| format!("{code} {status}")).collect();
    format!(
        "{example}\n\n{FAULTS}\n\nOperations:\n{}\n\nCodes and their statuses (also InvalidParameter.*, 400):\n{}",
        in_lines(&FAULT_ACTIONS),
        in_lines(&codes)
    )
}

/// These, separated by commas, in lines of less than 100 characters.
fn in_lines(names: &[impl AsRef<str>]) -> String {
    let mut lines = vec![String::from(" ")];
    for (at, name) in names.iter().map(AsRef::as_ref).enumerate() {
        let separator = if at + 1 < names.len() { "," } else { "" };
        match lines.last_mut() {
            Some(line) if line.len() + name.len() <= 96 => {
                line.extend([" ", name, separator]);
            }
            _ => lines.push(format!("  {name}{separator}")),
        }
    }
    lines.join("\n")
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PayloadArg {
    Decoded,
    AsSent,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverArg {
    #[value(name = "Throttling.User")]
    ThrottlingUser,
    #[value(name = "SystemOverFlow")]
    SystemOverFlow,
}

/// Reads `id=secret` or `id=secret:token`.
fn key(text: &str) -> Result<KeyPair, String> {
    let (id, rest) = text.split_once('=').ok_or("a key is id=secret or id=secret:token")?;
    let (secret, token) = match rest.split_once(':') {
        Some((secret, token)) => (secret, Some(token)),
        None => (rest, None),
    };
    if id.is_empty() || secret.is_empty() || token.is_some_and(str::is_empty) {
        return Err("neither id nor secret nor token may be empty".to_owned());
    }
    Ok(KeyPair { id: id.to_owned(), secret: secret.to_owned(), token: token.map(str::to_owned) })
}

impl EmulatorArgs {
    fn into_options(self, faults: Vec<Fault>) -> EmulatorOptions {
        let default = EmulatorOptions::default();
        EmulatorOptions {
            listen: self.listen,
            account_qps: self.account_qps,
            egress_ip_qps: self.egress_ip_qps,
            keys: if self.keys.is_empty() { default.keys } else { self.keys },
            key_life: self.key_life,
            mqtt: self.mqtt,
            mqtt_payload: match self.mqtt_payload {
                PayloadArg::Decoded => MqttPayload::Decoded,
                PayloadArg::AsSent => MqttPayload::AsSent,
            },
            latency: self.latency,
            over: match self.over {
                OverArg::ThrottlingUser => Over::ThrottlingUser,
                OverArg::SystemOverFlow => Over::SystemOverFlow,
            },
            faults,
            seed: self.seed,
            ..default
        }
    }
}

/// Runs until a signal ends it.
pub(super) fn run(args: EmulatorArgs) -> Result<(), VerbError> {
    let faults = args.faults.as_deref().map_or_else(|| Ok(Vec::new()), read_faults)?;
    runtime(1)?.block_on(emulate(args.into_options(faults)))
}

async fn emulate(options: EmulatorOptions) -> Result<(), VerbError> {
    let mut stop = Stop::listen()?;
    let emulator = Emulator::start(options.clone()).map_err(|error| match error {
        EmulatorError::Mqtt(_) => VerbError::Usage(error.to_string()),
        _ => VerbError::Runtime(error.to_string()),
    })?;
    // It works as well if standard output is closed.
    std::io::stdout().write_all(screen(&emulator.url(), &options).as_bytes()).ok();
    stop.received().await;
    emulator.stop().await;
    Ok(())
}

fn read_faults(file: &Path) -> Result<Vec<Fault>, VerbError> {
    let json = std::fs::read(file).map_err(|error| error.to_string());
    let faults = json.and_then(|json| Fault::parse_list(&json).map_err(|error| error.to_string()));
    faults.map_err(|error| VerbError::File(format!("{}: {error}", file.display())))
}

/// A key without its secret, unless it is the demo's published one.
fn line_of(key: &KeyPair) -> String {
    let is_demo = key.id == DEMO_KEY_ID && key.secret == DEMO_KEY_SECRET;
    let secret = if is_demo { DEMO_KEY_SECRET } else { "(as given)" };
    let token = if key.token.is_some() { " and a token" } else { "" };
    format!("{} with secret {secret}{token}", key.id)
}

/// What a person needs to know to use it, on one screen.
fn screen(url: &str, options: &EmulatorOptions) -> String {
    let keys: Vec<_> = options.keys.iter().map(line_of).collect();
    let keys = keys.join("\n            ");
    let limit = |qps: u32, beyond: &str| match qps {
        0 => "no limit".to_owned(),
        _ => format!("{qps} calls/s; beyond it {beyond}"),
    };
    let account = limit(options.account_qps, "calls are throttled");
    let egress_ip = limit(options.egress_ip_qps, "the address is blocked");
    format!(
        "Emulating ApsaraMQ for MQTT at {url}
  keys      {keys}
  account   {account}
  address   {egress_ip}
  broker    {}

  POST /    SendMessage, signed; AssumeRole, signed; AssumeRoleWithOIDC; ApplyToken, QueryToken,
            RevokeToken, CreateGroupId, DeleteGroupId, ListGroupId, QuerySessionByClientId and
            BatchQuerySessionByClientIds, signed, each under its published ceiling
  GET /latest/meta-data/ram/security-credentials/
  curl -s {url}/_emulator/report
  curl -s {url}/_emulator/messages
  curl -s {url}/_emulator/faults -d '[{{\"code\":\"SystemOverFlow\",\"probability\":0.3,\"for\":\"10s\"}}]'
  curl -s {url}/_emulator/keys
  curl -s {url}/_emulator/keys/ID -X DELETE
  curl -s {url}/_emulator/reset -X POST
  curl -s {url}/_emulator/blocked -X DELETE

Ctrl-C stops it.
",
        options.mqtt.as_deref().map_or("none", |url| url.rsplit('@').next().unwrap_or(url)),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: EmulatorArgs,
    }

    fn options(args: &str) -> Result<EmulatorOptions, clap::Error> {
        let words = std::iter::once("emulator").chain(args.split_whitespace());
        Ok(Cli::try_parse_from(words)?.args.into_options(Vec::new()))
    }

    #[test]
    fn without_flags_the_published_limits_and_the_demo_key() {
        let (given, default) = (options("").unwrap(), EmulatorOptions::default());
        assert_eq!(given.listen, default.listen);
        assert_eq!((given.account_qps, given.egress_ip_qps), (1000, 300));
        assert_eq!(given.keys, [KeyPair::new("demo-key-id", "demo-key-secret")]);
        assert_eq!((given.latency, given.over), (default.latency, default.over));
    }

    #[test]
    fn every_flag() {
        let given = options(
            "--listen 127.0.0.1:0 --account-qps 5 --egress-ip-qps 0 --keys a=b,c=d:e=f:g \
             --mqtt mqtt://127.0.0.1:1883 --mqtt-payload as-sent --latency 20ms \
             --over SystemOverFlow --seed 9",
        );
        let given = given.unwrap();
        assert_eq!(given.listen.port(), 0);
        assert_eq!((given.account_qps, given.egress_ip_qps, given.seed), (5, 0, 9));
        assert_eq!(given.keys, [KeyPair::new("a", "b"), KeyPair::with_token("c", "d", "e=f:g")]);
        assert_eq!(given.mqtt.as_deref(), Some("mqtt://127.0.0.1:1883"));
        assert_eq!(given.mqtt_payload, MqttPayload::AsSent);
        assert_eq!(given.latency, Duration::from_millis(20));
        assert_eq!(given.over, Over::SystemOverFlow);
    }

    /// Each field and each value that the parser of faults takes, as its own errors list them.
    #[test]
    fn the_help_names_all_that_a_fault_may_have() {
        let help = long_help();
        let mut names = 0;
        for wrong in [r#"[{"no-field":1}]"#, r#"[{"then":"no-value"}]"#] {
            let error = Fault::parse_list(wrong.as_bytes()).unwrap_err().to_string();
            let (_, listed) = error.split_once("expected one of ").unwrap();
            for name in listed.split('`').skip(1).step_by(2) {
                names += 1;
                assert!(
                    help.lines().any(|line| line.trim().starts_with(&format!("{name} "))),
                    "{name}"
                );
            }
        }
        assert_eq!(names, 10 + 6);
        assert!(help.contains("SystemOverFlow 500,") && help.contains(" metadata\n"), "{help}");
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }

    #[test]
    fn wrong_usage() {
        for args in ["--keys a", "--keys =b", "--keys a=b:", "--latency soon", "--over Throttling"]
        {
            assert!(options(args).is_err(), "{args}");
        }
    }

    #[test]
    fn the_screen_shows_no_secret_but_the_demo_keys() {
        let given = options("--keys a=hidden --mqtt mqtt://u:hidden@h").unwrap();
        let screen = screen("http://x", &given);
        assert!(screen.contains("a with secret (as given)"), "{screen}");
        assert!(!screen.contains("hidden"), "{screen}");
    }
}
