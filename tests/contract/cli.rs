//! The command line as its user sees it: words, exit codes, signals.

use std::io::Write;
use std::sync::Arc;

use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Serve, run};
use crate::support::script::{Say, Script, error};
use crate::support::until;
use rustix::process::Signal;
use tokio::sync::Notify;

#[tokio::test]
async fn every_verb_explains_itself_with_an_example() {
    let help = run(&["--help"], &[]).await;
    assert_eq!(help.code, 0);
    for verb in ["serve", "demo", "check", "status", "messages", "bill", "get", "emulator"] {
        assert!(help.stdout.contains(&format!("\n  {verb} ")), "{}", help.stdout);
        let own = run(&[verb, "--help"], &[]).await;
        assert_eq!(own.code, 0, "{verb}");
        assert!(own.stdout.contains("Example"), "{verb}: {}", own.stdout);
        assert!(own.stdout.contains(&format!("tollgate {verb}")), "{verb}: {}", own.stdout);
    }
    let version = run(&["--version"], &[]).await;
    let version = version.stdout.trim();
    assert!(version.starts_with("tollgate 0.") && version.ends_with(')'), "{version}");
}

#[tokio::test]
async fn exit_codes() {
    assert_eq!(run(&["fly"], &[]).await.code, 2, "wrong usage");
    assert_eq!(run(&["serve", "--fly"], &[]).await.code, 2, "wrong usage");
    let emulator = ["emulator", "--listen", "127.0.0.1:0", "--mqtt", "http://x"];
    assert_eq!(run(&emulator, &[]).await.code, 2, "wrong usage");
    let none = run(&["serve"], &[]).await;
    assert_eq!(none.code, 4, "no endpoint");
    assert!(none.stderr.contains("upstream.endpoint"), "{}", none.stderr);
    assert_eq!(run(&["serve", "--config", "/nowhere.toml"], &[]).await.code, 4);

    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "[upstream]\nendpont = 1\ninstance_id = \"i\"\n[publish]\nwait = \"-1s\"\nmax_waiting = 0\n"
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let check = run(&["check", "--config", path], &[("TOLLGATE__DRAIN__GRACE", "soon")]).await;
    assert_eq!((check.code, check.stdout.as_str()), (4, ""));
    for key in ["endpont", "publish.wait", "publish.max_waiting", "drain.grace"] {
        assert!(check.stderr.contains(key), "{key} is missing in\n{}", check.stderr);
    }
    assert!(check.stderr.contains(path) && check.stderr.contains("TOLLGATE__DRAIN__GRACE"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let listen = format!("--set=listen.publish={taken}");
    let rest = ["--set=upstream.endpoint=http://127.0.0.1:1", "--set=upstream.instance_id=i"];
    let key = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret"),
    ];
    let serve = run(&["serve", &listen, rest[0], rest[1]], &key).await;
    assert_eq!(serve.code, 1, "{}", serve.stderr);
    assert!(serve.stderr.contains(&taken), "{}", serve.stderr);
}

/// Without a key a sidecar starts: callers are answered at once, and whatever an operator looks at names the
/// variable, path or address that has none.
#[tokio::test]
async fn a_sidecar_without_a_key() {
    let no_key = [("ALIBABA_CLOUD_ACCESS_KEY_ID", "")];
    for (settings, named) in [
        (vec![("keys.source", "env")], "ALIBABA_CLOUD_ACCESS_KEY_ID is not set"),
        (vec![("keys.source", "file"), ("keys.path", "/nowhere")], "/nowhere/"),
        (
            vec![("keys.source", "uri"), ("keys.uri", "http://127.0.0.1:1/k")],
            "http://127.0.0.1:1: ",
        ),
        (
            vec![
                ("keys.source", "oidc"),
                ("keys.oidc_role_arn", "acs:ram::1:role/r"),
                ("keys.oidc_provider_arn", "acs:ram::1:oidc-provider/p"),
                ("keys.oidc_token_file", "/nowhere/token"),
            ],
            "/nowhere/token",
        ),
        (
            vec![("keys.source", "auto"), ("keys.ecs_endpoint", "http://127.0.0.1:1")],
            "env, which is set up here: ALIBABA",
        ),
    ] {
        let settings = [&[("upstream.endpoint", "http://127.0.0.1:1")][..], &settings].concat();
        let serve = Serve::start(&settings, &no_key).await;
        serve.logs(named).await;
        let startup = get(&serve.telemetry, "/startupz").await;
        assert_eq!(startup.status, 503);
        assert!(startup.text().contains(named), "{}", startup.text());
        let verbose = get(&serve.telemetry, "/readyz?verbose").await.text();
        assert!(verbose.contains(named), "{verbose}");
        let status = get(&serve.telemetry, "/status.json").await.json();
        assert_eq!(status["concerns"][0]["title"], "No access key", "{status}");
        let answer = post(&serve.publish, "/publish/TopicA", &[], b"x").await;
        assert!([502, 503].contains(&answer.status), "{}", answer.text());
    }
}

/// Where an app is asked to end at the same moment, its last messages are still taken.
#[tokio::test]
async fn sigterm_with_an_app_that_is_not_done() {
    let emulator = Emulator::start(&[]).await;
    let url = emulator.url();
    let settings =
        [("upstream.endpoint", url.as_str()), ("drain.accept_for", "1h"), ("drain.grace", "1m")];
    let serve = Serve::start(&settings, &[]).await;
    serve.signal(Signal::TERM);
    until("it is not ready", async || get(&serve.telemetry, "/readyz").await.status == 503).await;
    let verbose = get(&serve.telemetry, "/readyz?verbose").await.text();
    assert!(verbose.contains("stopping: true\naccepting: true\n"), "{verbose}");
    let status = get(&serve.telemetry, "/status.json").await.json();
    assert_eq!((&status["draining"], &status["accepting"]), (&true.into(), &true.into()));
    let detail = status["concerns"][0]["detail"].as_str().unwrap();
    assert!(detail.starts_with("tollgate still accepts messages"), "{detail}");
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"last").await.status, 200);
    // A second one ends that, too.
    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn sigterm_finishes_what_is_on_its_way() {
    let told = Arc::new(Notify::new());
    let script = Script::start([Say::Later(Arc::clone(&told))]).await;
    let settings = [
        ("upstream.endpoint", script.url.as_str()),
        ("upstream.call_timeout", "1m"),
        ("publish.wait", "1m"),
        ("drain.grace", "1m"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let publish = serve.publish.clone();
    let waiting =
        tokio::spawn(async move { post(&publish, "/publish/TopicA", &[], b"x").await.status });
    while script.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    serve.signal(Signal::TERM);
    // New messages are refused while the old one is finished.
    let refused = loop {
        let answer = post(&serve.publish, "/publish/TopicA", &[], b"x").await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["type"], "urn:tollgate:draining");
    assert_eq!((refused.header("connection"), refused.header("retry-after")), ("close", "1"));
    let verbose = get(&serve.telemetry, "/readyz?verbose").await;
    assert_eq!(verbose.status, 503);
    assert!(verbose.text().contains("stopping: true\naccepting: false\n"), "{}", verbose.text());
    let status = get(&serve.telemetry, "/status.json").await.json();
    assert_eq!((&status["draining"], &status["accepting"]), (&true.into(), &false.into()));
    let detail = status["concerns"][0]["detail"].as_str().unwrap();
    assert!(detail.starts_with("tollgate refuses new messages (503)"), "{detail}");
    assert_eq!(get(&serve.telemetry, "/readyz").await.status, 503);
    assert_eq!(get(&serve.telemetry, "/livez").await.status, 200);
    told.notify_one();
    assert_eq!(waiting.await.unwrap(), 200, "it was delivered while stopping");
    let (status, log) = serve.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn one_line_a_failed_message_and_none_a_delivered_one() {
    let script = Script::start([]).await;
    let serve = Serve::start(&[("upstream.endpoint", script.url.as_str())], &[]).await;
    for _ in 0..20 {
        assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    }
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("x-request-id", "mine"), ("traceparent", trace)];
    assert_eq!(post(&serve.publish, "/publish/no", &headers, b"x").await.status, 400);
    serve.signal(Signal::TERM);
    let (_, log) = serve.ended().await;
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed: Vec<_> = lines.iter().filter(|l| l["message"] == "message not delivered").collect();
    assert_eq!(failed.len(), 1, "{log}");
    let line = failed[0];
    assert_eq!(line["request_id"], "mine");
    assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((&line["topic"], &line["outcome"]), (&"no".into(), &"invalid".into()));
    assert_eq!(lines.len(), 5, "a key, serving, the failed message, stopping, stopped:\n{log}");
}

/// A changed file is taken up while running; an invalid one changes nothing and says so.
#[tokio::test]
async fn the_configuration_is_reloaded() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tollgate.toml");
    let write = |text: &str| {
        let next = folder.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, &file).unwrap();
    };
    write("[ceilings]\naccount = 500\n[topics]\nallow = [\"Old\"]\n");
    let args = ["--config", file.to_str().unwrap()];
    let settings = [("upstream.endpoint", script.url.as_str())];
    let serve = Serve::start_with(&args, &settings, &[]).await;
    let policy = async || {
        let answer = post(&serve.publish, "/publish/New", &[], b"x").await;
        (answer.status, answer.header("ratelimit-policy").to_owned())
    };
    assert_eq!(policy().await, (403, "\"account\";q=500;w=1".to_owned()));
    let seen = async || {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        let ready = get(&serve.telemetry, "/readyz?verbose").await.text();
        let figure = |name: &str| series(&metrics, &format!("tollgate_config_{name}"));
        let figures = (figure("last_reload_successful"), figure("pending_restart_keys"));
        let hash = metrics.lines().find_map(|line| line.strip_prefix("tollgate_config_hash "));
        (figures, hash.unwrap().to_owned(), ready)
    };
    let (figures, first, ready) = seen().await;
    assert_eq!(figures, (1.0, 0.0));
    assert!(first != "0" && ready.contains("configuration: ok\n"), "{ready}");

    write("[ceilings]\naccount = 700\n[topics]\nallow = [\"New\"]\n[publish]\nmax_waiting = 9\n");
    serve.logs("configuration reloaded").await;
    assert_eq!(policy().await, (200, "\"account\";q=700;w=1".to_owned()));
    serve.logs("these changes need a restart").await;
    assert!(serve.log().contains("publish.max_waiting"));
    let (figures, second, ready) = seen().await;
    assert_eq!(figures, (1.0, 1.0), "valid; one key waits");
    assert_ne!(second, first);
    assert!(ready.contains("a restart is needed for publish.max_waiting"), "{ready}");

    write("[ceilings]\naccount = \"lots\"\n");
    serve.signal(Signal::HUP);
    serve.logs("nothing has changed").await;
    assert!(serve.log().contains("ceilings.account"));
    let (figures, third, ready) = seen().await;
    assert_eq!((figures.0, third), (0.0, second), "invalid: what was read before holds");
    assert!(ready.contains("the last change is invalid"), "{ready}");
    until("the concern is shown", async || {
        let status = get(&serve.telemetry, "/status.json").await.text();
        status.contains("The changed configuration is invalid")
    })
    .await;
    assert_eq!(policy().await, (200, "\"account\";q=700;w=1".to_owned()));
    serve.signal(Signal::TERM);
    assert!(serve.ended().await.0.success());
}

/// One screen of a running sidecar: what is wrong comes first.
#[tokio::test]
async fn status_says_what_is_wrong() {
    let script = Script::start([]).await;
    let serve = Serve::start(&[("upstream.endpoint", script.url.as_str())], &[]).await;
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    let said = run(&["status", "--at", &serve.telemetry], &[]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    for words in ["up ", "No problems", "1 billed, 0 uncertain", "no ceiling", "env, loaded"] {
        assert!(said.stdout.contains(words), "{words}:\n{}", said.stdout);
    }
    let failing = Script::start([error(403, "Forbidden.RAM")]).await;
    let serve = Serve::start(&[("upstream.endpoint", failing.url.as_str())], &[]).await;
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 502);
    let said = run(&["status", "--at", &serve.telemetry], &[]).await;
    assert!(
        said.stdout.lines().nth(1).unwrap().starts_with("PROBLEM  The provider denies permission"),
        "{}",
        said.stdout
    );
    let named = serve.telemetry.replace("127.0.0.1", "localhost");
    let json = run(&["status", "--at", &named, "-o", "json"], &[]).await.stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["concerns"][0]["level"], "bad");
    serve.signal(Signal::TERM);
    let telemetry = serve.telemetry.clone();
    serve.ended().await;
    let said = run(&["status", "--at", &telemetry], &[]).await;
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("no sidecar answers at"), "{}", said.stderr);
}

/// Half of a file is valid, and has no `[ceilings]` and no `[topics]`: it is not applied.
#[tokio::test]
async fn a_file_that_is_written_in_parts_is_not_applied_by_half() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tollgate.toml");
    let begin = "[publish]\nwait = \"2s\"\n";
    std::fs::write(&file, format!("{begin}[ceilings]\naccount = 20\n")).unwrap();
    let args = ["--config", file.to_str().unwrap()];
    let serve = Serve::start_with(&args, &[("upstream.endpoint", &script.url)], &[]).await;
    let policy = async || {
        let answer = post(&serve.publish, "/publish/TopicA", &[], b"x").await;
        answer.header("ratelimit-policy").to_owned()
    };
    let rewritten = tokio::time::Instant::now();
    std::fs::write(&file, begin).unwrap();
    // Longer than from one look to the next.
    while rewritten.elapsed() < std::time::Duration::from_millis(2_200) {
        assert_eq!(policy().await, "\"account\";q=20;w=1");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    std::fs::write(&file, format!("{begin}[ceilings]\naccount = 30\n")).unwrap();
    serve.logs("configuration reloaded").await;
    assert_eq!(policy().await, "\"account\";q=30;w=1");
}

/// `check --probe` finds what a start would fail with, and sends nothing.
#[tokio::test]
async fn probes() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let set = |key: &str, value: &str| format!("--set={key}={value}");
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let control = format!("unix:{}", path(&folder.path().join("control.sock")));
    let base = [
        set("upstream.endpoint", &script.url),
        set("upstream.instance_id", "i"),
        set("spool.path", &path(&spool)),
        set("spool.max_bytes", "1MiB"),
        set("listen.control", &control),
    ];
    let env = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret"),
    ];
    let probed = async |more: &[String], env: &[(&str, &str)]| {
        let args = ["check", "--probe"].into_iter().map(str::to_owned);
        let args: Vec<_> = args.chain(base.iter().cloned()).chain(more.iter().cloned()).collect();
        run(&args.iter().map(String::as_str).collect::<Vec<_>>(), env).await
    };
    let good = probed(&[], &env).await;
    assert_eq!(good.code, 0, "{}{}", good.stdout, good.stderr);
    for words in ["upstream.endpoint 127.0.0.1", "has a key", "spool: can be created"] {
        assert!(good.stdout.contains(words), "{words}: {}", good.stdout);
    }
    assert!(!good.stdout.contains("testsecret"));
    assert!(!spool.exists(), "nothing is left behind");

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let missing = folder.path().join("missing");
    for (more, failure) in [
        (set("spool.path", &path(&file)), "cannot be written"),
        (set("spool.max_bytes", "1TiB"), "may need 2.0 TiB"),
        (set("upstream.endpoint", "http://nowhere.invalid"), "does not resolve"),
        (
            format!(
                "{} {}",
                set("upstream.endpoint", "https://127.0.0.1:1"),
                set("upstream.roots", &path(&missing))
            ),
            "upstream.roots",
        ),
        (set("upstream.egress_addresses", "192.0.2.1"), "cannot be sent from"),
        (set("spool.mac_file", &path(&file)), "has no key"),
        (set("spool.mac_file", &path(&missing)), "No such file"),
    ] {
        let flags: Vec<_> = more.split(' ').map(str::to_owned).collect();
        let bad = probed(&flags, &env).await;
        assert_eq!(bad.code, 1, "{more}: {}", bad.stdout);
        let line = bad.stdout.lines().find(|line| line.starts_with("  FAILED")).unwrap();
        assert!(line.contains(failure), "{more}: {line}");
        assert!(bad.stderr.contains("1 of "), "{}", bad.stderr);
    }
    let keyless = probed(&[], &[]).await;
    assert!(keyless.code == 1 && keyless.stdout.contains("FAILED  keys.source env"));
    let mounted = [set("keys.source", "file"), set("keys.path", &path(&missing))];
    assert!(probed(&mounted, &[]).await.stdout.contains("FAILED  keys.path"));
    let fleet = [set("fleet.url", "redis://127.0.0.1:1"), set("fleet.password_file", &path(&file))];
    let empty = probed(&fleet, &env).await;
    assert!(empty.stdout.contains("FAILED  fleet.password_file"), "{}", empty.stdout);
    assert!(script.requests().is_empty(), "no call was made");
}

/// What a verb cannot look at, such as a folder of another user, is not said to be nowhere, and no other folder is
/// probed instead.
#[tokio::test]
async fn a_folder_that_cannot_be_looked_at_is_not_absent() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("loop", folder.path().join("loop")).unwrap();
    let spool = folder.path().join("loop/spool").display().to_string();
    let path = format!("--set=spool.path={spool}");
    let base = [
        "--set=upstream.endpoint=http://127.0.0.1:1",
        "--set=upstream.instance_id=i",
        "--set=listen.control=none",
        &path,
    ];
    for verb in [
        &["messages", "list"][..],
        &["messages", "deliver", "--spool", &spool],
        &["bill"],
        &["check", "--probe"],
    ] {
        let said = run(&[verb, &base].concat(), &[]).await;
        let shown = format!("{verb:?}: {}{}", said.stdout, said.stderr);
        assert_eq!(said.code, 1, "{shown}");
        assert!(shown.contains("symbolic links"), "{shown}");
        assert!(!shown.contains("there is no") && !shown.contains("can be created"), "{shown}");
    }
}

/// The file is found without `--config`, and operators need no `[upstream]`.
#[tokio::test]
async fn where_the_configuration_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tollgate.toml");
    let spool = folder.path().join("spool");
    std::fs::write(&file, format!("[spool]\npath = {spool:?}\n[listen]\ncontrol = \"none\"\n"))
        .unwrap();
    let found = [("TOLLGATE_CONFIG", file.to_str().unwrap())];
    let check = run(&["check"], &found).await;
    assert_eq!(check.code, 4);
    assert!(check.stderr.contains("upstream.endpoint"), "{}", check.stderr);
    let list = run(&["messages", "list"], &found).await;
    assert!(!list.stderr.contains("upstream"), "{}", list.stderr);
    assert!(list.stderr.contains(spool.to_str().unwrap()) || list.code == 0, "{}", list.stderr);
    let bill = run(&["bill"], &found).await;
    assert!(!bill.stderr.contains("upstream"), "{}", bill.stderr);
    let fleet = run(&["bill", "--fleet"], &found).await;
    assert_eq!(fleet.code, 2);
    assert!(fleet.stderr.contains("set fleet.url"), "{}", fleet.stderr);
    let fleet = run(&["bill", "--fleet", "--set", "fleet.url=redis://127.0.0.1:1"], &found).await;
    assert_eq!(fleet.code, 1);
    assert!(fleet.stderr.contains("the fleet's Redis cannot be read"), "{}", fleet.stderr);
    let flag = run(&["messages", "list", "--config", "/nowhere.toml"], &found).await;
    assert_eq!(flag.code, 4, "the flag wins");
    std::fs::write(&file, "[spool]\npth = 1\n").unwrap();
    assert_eq!(run(&["messages", "list"], &found).await.code, 4, "other errors stay errors");
}

/// The reader of the log stops reading, and the pipe is full: callers, probes and the stop go on.
#[tokio::test]
async fn a_log_that_is_not_read_stops_nothing() {
    let script = Script::start([]).await;
    let settings = [("upstream.endpoint", script.url.as_str()), ("telemetry.level", "trace")];
    let serve = Serve::start(&settings, &[]).await;
    serve.stop_reading();
    // Far more than the pipe (64 KiB) and the queue of lines take.
    let mut dropped = 0.0;
    while dropped == 0.0 {
        for _ in 0..50 {
            assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
        }
        assert_eq!(get(&serve.telemetry, "/livez").await.status, 200);
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        dropped = series(&metrics, "tollgate_log_lines_dropped_total");
    }
    serve.signal(Signal::TERM);
    assert!(serve.ended_unread().await.success());
}

/// More connections than the limit of open files carries: the configured number is lowered, so that
/// calls and probes go on.
#[tokio::test]
async fn connections_are_bounded_by_the_limit_of_open_files() {
    let script = Script::start([]).await;
    let serve = Serve::start_under("ulimit -n 300", &[("upstream.endpoint", &script.url)]).await;
    assert!(serve.log().contains("the limit of open files (300)"), "{}", serve.log());
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(tokio::net::TcpStream::connect(&serve.publish).await.unwrap());
    }
    assert_eq!(get(&serve.telemetry, "/livez").await.status, 200);
    assert_eq!(get(&serve.telemetry, "/readyz").await.status, 200);
    drop(silent);
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert!(status.success() && !log.contains("Too many open files"), "{log}");
}
