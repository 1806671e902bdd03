//! The real binary. No process of a test may show a secret that it was given: its output is looked at when it ends.
#![allow(clippy::format_push_string, reason = "short is better here")]

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::http::BOUND;

/// What a verb said, and how it ended.
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The binary with these arguments, and nothing of tollgate's in its environment.
pub fn tollgate(args: &[&str], env: &[(&str, &str)]) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_tollgate")), args, env)
}

/// The same, in a shell that has run something before, such as `ulimit -n 300`.
fn tollgate_under(before: &str, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_tollgate")]);
    clean(shell, args, env)
}

fn clean(mut command: Command, args: &[&str], env: &[(&str, &str)]) -> Command {
    for (name, _) in std::env::vars() {
        let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
        if is_proxy || name.starts_with("TOLLGATE_") || name.starts_with("ALIBABA_CLOUD_") {
            command.env_remove(name);
        }
    }
    command.args(args).envs(env.iter().copied()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a verb to its end.
pub async fn run(args: &[&str], env: &[(&str, &str)]) -> Said {
    let secrets = Secrets::given(args, env);
    let output = timeout(BOUND, tollgate(args, env).output()).await.expect("no hang").unwrap();
    let said = Said {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    secrets.assert_unseen(&said.stdout);
    secrets.assert_unseen(&said.stderr);
    said
}

/// Secrets that a process was given: by its environment, and in the files that its settings name.
#[derive(Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// Shorter ones are found in other words.
    const SHORTEST: usize = 8;

    fn given<'a>(
        args: &[impl AsRef<str>],
        env: impl IntoIterator<Item = &'a (&'a str, &'a str)>,
    ) -> Self {
        let mut secrets = Self::default();
        for (name, value) in env {
            if name.contains("SECRET") || name.contains("TOKEN") && !name.ends_with("_FILE") {
                secrets.add(value);
            }
        }
        for arg in args.iter().map(AsRef::as_ref) {
            let arg = arg.strip_prefix("--set=").unwrap_or(arg);
            match arg.split_once('=') {
                Some(("keys.path", folder)) => {
                    let folder = std::path::Path::new(folder);
                    for part in ["access_key_secret", "security_token"] {
                        secrets.add_file(&folder.join(part));
                    }
                }
                Some((key, path)) if key.ends_with("token_file") || key.ends_with("mac_file") => {
                    secrets.add_file(path.as_ref());
                }
                Some((key, text)) if key.ends_with("url") || key.ends_with("uri") => {
                    // The password of its user.
                    let user = text.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
                    let password = user.and_then(|(user, _)| user.split_once(':'));
                    if let Some((_, password)) = password {
                        secrets.add(password);
                    }
                }
                _ => {}
            }
        }
        secrets
    }

    fn add(&mut self, secret: &str) {
        if secret.len() >= Self::SHORTEST {
            self.0.push(secret.to_owned());
        }
    }

    fn add_file(&mut self, path: &std::path::Path) {
        // What cannot be read is no secret of the process's either.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for line in text.lines() {
            self.add(line.trim());
        }
    }

    /// None of them is in what a process has shown.
    pub fn assert_unseen(&self, shown: &str) {
        for secret in &self.0 {
            assert!(!shown.contains(secret.as_str()), "a secret is shown: {secret}\n{shown}");
        }
    }
}

/// A running `tollgate serve`; killed when dropped.
pub struct Serve {
    pub publish: String,
    pub telemetry: String,
    child: Child,
    log: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
    stalled: Arc<Notify>,
    secrets: Secrets,
}

impl Drop for Serve {
    fn drop(&mut self) {
        // A test that fails has a message of its own.
        if !std::thread::panicking() {
            self.secrets.assert_unseen(&self.log());
        }
    }
}

impl Serve {
    /// Starts one on free ports with the test's key, and waits until it serves.
    pub async fn start(settings: &[(&str, &str)], env: &[(&str, &str)]) -> Self {
        Self::start_with(&[], settings, env).await
    }

    /// The same with more arguments.
    pub async fn start_with(
        more: &[&str],
        settings: &[(&str, &str)],
        env: &[(&str, &str)],
    ) -> Self {
        Self::spawn(more, settings, env, |args, key| {
            let mut command = tollgate(args, key);
            command.envs(env.iter().copied());
            command
        })
        .await
    }

    /// Starts one in a shell that has run something before.
    pub async fn start_under(before: &str, settings: &[(&str, &str)]) -> Self {
        Self::spawn(&[], settings, &[], |args, key| tollgate_under(before, args, key)).await
    }

    async fn spawn(
        more: &[&str],
        settings: &[(&str, &str)],
        env: &[(&str, &str)],
        command: impl FnOnce(&[&str], &[(&str, &str)]) -> Command,
    ) -> Self {
        let mut args = vec!["serve".to_owned()];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let base = [
            ("listen.publish", "127.0.0.1:0"),
            ("listen.telemetry", "127.0.0.1:0"),
            ("upstream.instance_id", super::INSTANCE),
            ("spool.store", "none"),
            ("listen.control", "none"),
        ];
        // A fleet's calls may not take so long.
        let in_fleet = settings.iter().any(|(key, _)| *key == "fleet.url");
        let patient = if in_fleet { &[][..] } else { &super::PATIENT };
        for (key, value) in base.iter().chain(patient).chain(settings) {
            args.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        let key = [
            ("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"),
            ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret"),
        ];
        let secrets = Secrets::given(&args, key.iter().chain(env));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut child = command(&args, &key).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let serving = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                log.lock().unwrap().push_str(&format!("{line}\n"));
                let fields: Value = serde_json::from_str(&line).unwrap_or_default();
                if fields["message"] == "tollgate is serving" {
                    return fields;
                }
            }
            panic!("it does not serve:\n{}", log.lock().unwrap());
        };
        let fields = timeout(BOUND, serving).await.expect("it serves in time");
        let text = |name: &str| fields[name].as_str().unwrap().to_owned();
        let kept = Arc::clone(&log);
        let stalled = Arc::new(Notify::new());
        let stalls = Arc::clone(&stalled);
        let reader = tokio::spawn(async move {
            loop {
                let line = tokio::select! {
                    line = lines.next_line() => line,
                    // The pipe stays open.
                    () = stalls.notified() => return std::future::pending().await,
                };
                let Ok(Some(line)) = line else { return };
                kept.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let (publish, telemetry) = (text("publish"), text("telemetry"));
        Self { publish, telemetry, child, log, reader, stalled, secrets }
    }

    /// Reads its log no more; the pipe fills.
    pub fn stop_reading(&self) {
        self.stalled.notify_one();
    }

    /// Waits for the end of one whose log is not read.
    pub async fn ended_unread(mut self) -> ExitStatus {
        let status = timeout(BOUND * 2, self.child.wait()).await.expect("it ends in time").unwrap();
        self.reader.abort();
        status
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log holds these words.
    pub async fn logs(&self, words: &str) {
        let logged = async {
            while !self.log().contains(words) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let logged = timeout(BOUND, logged).await;
        assert!(logged.is_ok(), "{words:?} is not in the log:\n{}", self.log());
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end: how it ended, and all that it logged.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        // By default 20 s of grace and 6 of a disk that hangs are in order.
        let status = timeout(BOUND * 2, self.child.wait()).await.expect("it ends in time").unwrap();
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).await.unwrap();
        self.secrets.assert_unseen(&stdout);
        assert_eq!(stdout, "", "serve speaks in its log");
        (&mut self.reader).await.unwrap();
        let log = self.log();
        (status, log)
    }
}

/// `tollgate emulator`; killed when dropped.
pub struct Emulator {
    pub address: String,
    child: Child,
}

impl Emulator {
    /// Starts one on a free port that knows the test's key.
    pub async fn start(args: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", args).await
    }

    /// The same at an address of its own.
    pub async fn start_at(listen: &str, args: &[&str]) -> Self {
        let base = ["emulator", "--listen", listen, "--latency", "5ms"];
        let keys = ["--keys", "testid=testsecret"];
        let mut child = tollgate(&[&base[..], &keys, args].concat(), &[]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = timeout(BOUND, lines.next_line()).await.expect("it starts in time");
            let line = line.unwrap().expect("it says where it listens");
            if let Some((_, rest)) = line.split_once("http://") {
                break rest
                    .split(|c: char| c.is_whitespace() || c == '/')
                    .next()
                    .unwrap()
                    .to_owned();
            }
        };
        tokio::spawn(async move { while lines.next_line().await.is_ok_and(|l| l.is_some()) {} });
        Self { address, child }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().and_then(|id| i32::try_from(id).ok()).unwrap()
    }

    pub async fn report(&self) -> Value {
        super::http::get(&self.address, "/_emulator/report").await.json()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// `tollgate keyring`; killed when dropped.
pub struct Keyring {
    pub address: String,
    log: Arc<Mutex<String>>,
    secrets: Secrets,
    _child: Child,
}

impl Drop for Keyring {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.secrets.assert_unseen(&self.log());
        }
    }
}

impl Keyring {
    /// Starts one with this configuration file, and a lasting key (id, secret) in its environment.
    pub async fn start(config: &str, key: &[&str]) -> Self {
        let env =
            [("ALIBABA_CLOUD_ACCESS_KEY_ID", key[0]), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", key[1])];
        let mut child = tollgate(&["keyring", "--config", config], &env).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let serving = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                log.lock().unwrap().push_str(&format!("{line}\n"));
                let fields: Value = serde_json::from_str(&line).unwrap_or_default();
                if fields["message"] == "the keyring is serving" {
                    return fields["listen"].as_str().unwrap().to_owned();
                }
            }
            panic!("it does not serve:\n{}", log.lock().unwrap());
        };
        let address = timeout(BOUND, serving).await.expect("it serves in time");
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let mut secrets = Secrets::given(&[] as &[&str], &env);
        let config = std::fs::read_to_string(config).unwrap();
        for line in config.lines().filter(|line| line.starts_with("token_file")) {
            secrets.add_file(line.split('"').nth(1).unwrap().as_ref());
        }
        Self { address, log, secrets, _child: child }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}
