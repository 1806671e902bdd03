//! What `tollgate check` prints and how it exits.

use std::process::ExitCode;

use clap::{Args as _, Command, FromArgMatches};
use tollgate::cli::check::{Args, run};
use tollgate::config::{Flags, explain};

use super::{File, LEAST, read, read_with};

const PROVIDER: &str =
    "[upstream]\nendpoint = \"onsmqtt.cn-hangzhou.aliyuncs.com\"\ninstance_id = \"x\"\n";

#[test]
fn every_value_stands_with_its_origin() {
    let env = [("TOLLGATE__PUBLISH__WAIT", "3s")];
    let loaded = read_with(LEAST, &env, &[("drain.grace", "7s")]).unwrap();
    let text = explain(&loaded);
    let line = |name: &str| {
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.into_iter().find(|words| words.first() == Some(&name)).unwrap().join(" ")
    };
    assert!(text.contains("\n[listen]\n"), "{text}");
    assert_eq!(line("wait"), "wait 3s environment TOLLGATE__PUBLISH__WAIT");
    assert_eq!(line("grace"), "grace 7s flag --set");
    assert_eq!(line("max_waiting"), "max_waiting 4096 default");
    assert!(line("instance_id").starts_with("instance_id post-cn-x file /"));
    for setting in &loaded.settings {
        let name = setting.key.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("  {name} ")), "{}", setting.key);
    }
}

/// Tables are shown with all their values.
#[test]
fn encodings_by_topic() {
    let rules = "[[upstream.payloads]]\ntopics = [\"Alarm/*\"]\nencoding = \"plain\"\n";
    let text =
        explain(&read(&format!("{LEAST}[publish]\nmax_payload = \"64KiB\"\n{rules}")).unwrap());
    for line in
        ["payloads  1 of them", "payloads[0].topics  Alarm/*", "payloads[0].encoding  plain"]
    {
        let words: Vec<_> = line.split("  ").collect();
        let is_shown = |shown: &str| {
            let mut parts = shown.split_whitespace();
            parts.next() == Some(words[0]) && shown.contains(words[1])
        };
        assert!(text.lines().any(is_shown), "{line} is not in\n{text}");
    }
    // Without a rule for it, no topic can have so long a body.
    let error = read(&format!("{LEAST}[publish]\nmax_payload = \"64KiB\"\n")).unwrap_err();
    assert!(error.to_string().contains("publish.max_payload"), "{error}");
}

#[test]
fn the_ceilings_that_follow() {
    let four = "egress_addresses = [\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\", \"10.0.0.4\"]\n";
    let raised = "[ceilings]\negress_ip = 500\nallow_above_published = true\n";
    let lifted =
        "[ceilings]\naccount = \"none\"\negress_ip = \"none\"\nallow_above_published = true\n";
    for (file, expected) in [
        (LEAST.to_owned(), "ceilings: account 1,000 calls/s; binding: account, 1,000 calls/s\n"),
        (
            PROVIDER.to_owned(),
            "ceilings: account 1,000 calls/s; 1 egress address x 300 = 300 calls/s; \
             binding: egress address, 300 calls/s\n",
        ),
        (
            format!("{PROVIDER}{four}"),
            "ceilings: account 1,000 calls/s; 4 egress addresses x 300 = 1,200 calls/s; \
             binding: account, 1,000 calls/s\n",
        ),
        (
            format!("{PROVIDER}{raised}"),
            "warning: ceilings.egress_ip is higher (the provider publishes 300 calls/s",
        ),
        (format!("{PROVIDER}{lifted}"), "ceilings: no ceiling: both are \"none\"\n"),
        (format!("{PROVIDER}{lifted}"), "warning: ceilings.account is \"none\""),
        (
            format!("{LEAST}[ceilings]\naccount = \"none\"\negress_ip = 123456\n"),
            "ceilings: 1 egress address x 123,456 = 123,456 calls/s; \
             binding: egress address, 123,456 calls/s\n",
        ),
    ] {
        let text = explain(&read(&file).unwrap());
        assert!(text.contains(expected), "{text}");
    }
    assert!(!explain(&read(PROVIDER).unwrap()).contains("warning"));
}

#[test]
fn the_region_of_a_shared_ceiling() {
    let fleet = "[fleet]\nurl = \"redis://redis\"\naccount = \"main\"\n";
    let vpc = PROVIDER.replace("onsmqtt.", "onsmqtt-vpc.");
    for (file, expected) in [
        (format!("{PROVIDER}{fleet}"), "shared with: account main, region cn-hangzhou\n"),
        (format!("{vpc}{fleet}"), "shared with: account main, region cn-hangzhou\n"),
        (format!("{PROVIDER}{fleet}region = \"\"\n"), "account main, region cn-hangzhou\n"),
        (
            format!("{PROVIDER}{fleet}region = \"Ap-South-1\"\n"),
            "account main, region ap-south-1\n",
        ),
        (format!("{LEAST}{fleet}"), "shared with: account main, all regions\n"),
        (format!("{LEAST}{fleet}region = \"cn-hangzhou\"\n"), "region cn-hangzhou\n"),
    ] {
        let text = explain(&read(&file).unwrap());
        assert!(text.contains(expected), "{file}\n{text}");
    }
    // Where it comes from, and nothing without a fleet.
    let text = explain(&read(&format!("{PROVIDER}{fleet}")).unwrap());
    let region = text.lines().find(|line| line.trim_start().starts_with("region ")).unwrap();
    let words: Vec<_> = region.split_whitespace().collect();
    assert_eq!(words, ["region", "cn-hangzhou", "default"]);
    assert!(!explain(&read(PROVIDER).unwrap()).contains("shared with"));
    for wrong in ["cn hangzhou", "cn:hangzhou", "{x}"] {
        assert!(read(&format!("{PROVIDER}{fleet}region = \"{wrong}\"\n")).is_err(), "{wrong}");
    }
}

/// The order in which `Answer::verdict` decides; `tests/contract/answers.rs` holds the verdicts against it.
#[test]
fn what_decides_the_meaning_of_an_answer() {
    let text = explain(&read(LEAST).unwrap());
    let order = "\n\
        what an answer of the provider means; the first rule that applies decides:\n  \
        1. 2xx                 delivered with a MsgId, else unknown\n  \
        2. retry.codes         what the configuration says of the code\n  \
        3. doubt               unknown: a copy arrived, or a gateway may have passed the call on\n  \
        4. x-acs-retry-after   throttled, on a status of 400 or more; Retry-After alike\n  \
        5. the table of codes  what the provider documents of the code\n  \
        6. the HTTP status     where the code is missing or not documented\n";
    assert!(text.ends_with(order), "{text}");
}

#[test]
fn no_secret_is_shown() {
    let uri = "http://somebody:SECRET@h/path?token=SECRET";
    let file = format!("{LEAST}[keys]\nsource = \"uri\"\nuri = \"{uri}\"\n");
    let loaded = read(&file).unwrap();
    let text = explain(&loaded);
    assert!(text.contains("http://***@h/path?***"), "{text}");
    assert!(!text.contains("SECRET") && !text.contains("somebody"), "{text}");
    let debug = format!("{loaded:?}");
    assert!(!debug.contains("SECRET"), "{debug}");

    let variable = [("ALIBABA_CLOUD_CREDENTIALS_URI", uri), ("TOLLGATE__KEYS__SOURCE", "uri")];
    let text = explain(&read_with(LEAST, &variable, &[]).unwrap());
    assert!(!text.contains("SECRET"), "{text}");
}

#[test]
fn mistakes_show_no_secret_either() {
    for file in [
        format!("{LEAST}[keys]\nuri = \"ftp://user:SECRET@h/?SECRET\"\n"),
        format!("{LEAST}[keys]\nuri = \"http://user:SEC RET/SECRET@h\"\n"),
        format!("{LEAST}[keys]\naccess_key_secret = \"SECRET\"\n"),
        format!("{LEAST}[publish]\npassword = [\"SECRET\"]\n"),
        LEAST.replace("127.0.0.1", "user:SECRET@h"),
        LEAST.replace("http://127.0.0.1:9460", "user:SECRET@h"),
        // The TOML reader quotes the line it stumbles over.
        format!("{LEAST}[keys]\nuri = \"http://user:SECRET@h\" x\n"),
        format!("{LEAST}SECRET = {{ keys = \n"),
    ] {
        let text = read(&file).unwrap_err().to_string();
        assert!(!text.contains("SECRET"), "{text}");
    }
    let env = [("TOLLGATE__KEYS__ACCESS_KEY_SECRET", "SECRET")];
    let text = read_with(LEAST, &env, &[]).unwrap_err().to_string();
    assert!(text.contains("***") && !text.contains("= SECRET"), "{text}");
}

#[test]
fn the_command_line() {
    let command = Args::augment_args(Command::new("check"));
    let help = command.clone().render_help().to_string();
    for words in ["Validate the configuration", "--config <FILE>", "--set <KEY=VALUE>", "Example:"]
    {
        assert!(help.contains(words), "{words} is not in\n{help}");
    }
    let words = ["check", "--config", "f.toml", "--set", "a=b=c", "--set", "drain.grace=1s"];
    let matches = command.clone().try_get_matches_from(words).unwrap();
    let flags = Args::from_arg_matches(&matches).unwrap().flags;
    assert_eq!(flags.config.as_deref(), Some("f.toml".as_ref()));
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(flags.set, [pair("a", "b=c"), pair("drain.grace", "1s")]);
    assert!(command.try_get_matches_from(["check", "--set", "publish.wait"]).is_err());
}

#[test]
fn exit_codes() {
    let code = |content: &str| {
        let file = File::new(content);
        let flags = Flags { config: Some(file.path.clone()), set: Vec::new() };
        format!("{:?}", run(Args { flags, probe: false }))
    };
    assert_eq!(code(LEAST), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(code("[upstream]"), format!("{:?}", ExitCode::from(4)));
    assert_ne!(format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::from(4)));
}
