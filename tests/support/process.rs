//! The real binary. No process of a test may show a secret that it was given, or has handed out: all of its output is
//! looked at when it ends.

use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::http::BOUND;
use super::output::Output;
use super::secrets::{Searched as _, Secrets};

/// What a verb said, and how it ended.
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The binary with these arguments, and nothing of tollgate's in its environment.
fn tollgate(args: &[&str], env: &[(&str, &str)]) -> Command {
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
    let output = timeout(BOUND, tollgate(args, env).searched()).await.expect("no hang").unwrap();
    let said = Said {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    secrets.assert_unseen(&said.stdout);
    secrets.assert_unseen(&said.stderr);
    said
}

/// A process, and all that it says. Killed when dropped; none of its secrets may be in what it has said by then.
pub struct Watched {
    child: Child,
    stdout: Output,
    stderr: Output,
    secrets: Mutex<Secrets>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Where it has not ended before.
        drop(self.child.start_kill());
        // A test that fails has a message of its own.
        if !std::thread::panicking() {
            let secrets = self.secrets.lock().unwrap();
            secrets.assert_unseen(&self.stdout.rest());
            secrets.assert_unseen(&self.stderr.rest());
        }
    }
}

impl Watched {
    /// Starts it. What `find` finds in the first line of either pipe that has it is sent.
    fn find<T: Send + 'static>(
        mut command: Command,
        secrets: Secrets,
        find: impl Fn(&str) -> Option<T> + Clone + Send + 'static,
    ) -> (Self, [oneshot::Receiver<T>; 2]) {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap().into_owned_fd().unwrap();
        let stderr = child.stderr.take().unwrap().into_owned_fd().unwrap();
        let (stdout, said) = Output::find(stdout, find.clone());
        let (stderr, logged) = Output::find(stderr, find);
        (Self { child, stdout, stderr, secrets: Mutex::new(secrets) }, [said, logged])
    }

    /// Starts the binary with these arguments, and this environment.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::find(tollgate(args, env), Secrets::given(args, env), |_| None::<()>).0
    }

    /// All that it has said by now.
    pub fn said(&self) -> String {
        self.stdout.text() + &self.stderr.text()
    }

    /// Waits until it has said these words, and returns their line.
    pub async fn says(&self, words: &str) -> String {
        let said = async {
            loop {
                if let Some(line) = self.said().lines().find(|line| line.contains(words)) {
                    return line.to_owned();
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let said = timeout(BOUND, said).await;
        said.unwrap_or_else(|_| panic!("{words:?} is not in:\n{}", self.said()))
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub async fn ended(&mut self, bound: std::time::Duration) -> ExitStatus {
        timeout(bound, self.child.wait()).await.expect("it ends in time").unwrap()
    }
}

/// The fields of the log line with this message.
fn fields_of(message: &'static str) -> impl Fn(&str) -> Option<Value> + Clone {
    move |line| {
        let fields: Value = serde_json::from_str(line).ok()?;
        (fields["message"] == message).then_some(fields)
    }
}

/// What was found in its output.
async fn found<T>(process: &Watched, found: oneshot::Receiver<T>) -> T {
    let found = timeout(BOUND, found).await.expect("it serves in time");
    found.unwrap_or_else(|_| panic!("it does not serve:\n{}", process.said()))
}

/// A running `tollgate serve`; killed when dropped.
pub struct Serve {
    pub publish: String,
    pub telemetry: String,
    process: Watched,
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
        let is_serving = fields_of("tollgate is serving");
        let (process, [_, serving]) = Watched::find(command(&args, &key), secrets, is_serving);
        let fields = found(&process, serving).await;
        let text = |name: &str| fields[name].as_str().unwrap().to_owned();
        Self { publish: text("publish"), telemetry: text("telemetry"), process }
    }

    /// Reads its log no more; the pipe fills.
    pub fn stop_reading(&self) {
        self.process.stderr.stall();
    }

    /// Waits for the end of one whose log is not read.
    pub async fn ended_unread(mut self) -> ExitStatus {
        self.process.ended(BOUND * 2).await
    }

    /// A secret that it has by now, and may not show either.
    pub fn has_secret(&self, secret: &str) {
        self.process.secrets.lock().unwrap().add(secret);
    }

    pub fn log(&self) -> String {
        self.process.stderr.text()
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
        self.process.pid()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end: how it ended, and all that it logged.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        // By default 20 s of grace and 6 of a disk that hangs are in order.
        let status = self.process.ended(BOUND * 2).await;
        assert_eq!(self.process.stdout.rest(), "", "serve speaks in its log");
        (status, self.process.stderr.rest())
    }
}

/// `tollgate emulator`; killed when dropped.
pub struct Emulator {
    pub address: String,
    process: Watched,
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
        let args = [&base[..], &keys, args].concat();
        let mut secrets = Secrets::default();
        for pair in args.windows(2).filter(|pair| pair[0] == "--keys") {
            pair[1]
                .split(',')
                .filter_map(|key| key.split_once('='))
                .for_each(|(_, secret)| secrets.add(secret));
        }
        let listens = |line: &str| {
            let rest = line.split_once("http://")?.1;
            rest.split(|c: char| c.is_whitespace() || c == '/').next().map(str::to_owned)
        };
        let (process, [listens, _]) = Watched::find(tollgate(&args, &[]), secrets, listens);
        Self { address: found(&process, listens).await, process }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.pid()).unwrap()
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
    process: Watched,
}

impl Keyring {
    /// Starts one with this configuration file, and a lasting key (id, secret) in its environment.
    pub async fn start(config: &str, key: &[&str]) -> Self {
        let env =
            [("ALIBABA_CLOUD_ACCESS_KEY_ID", key[0]), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", key[1])];
        let mut secrets = Secrets::given(&[] as &[&str], &env);
        let text = std::fs::read_to_string(config).unwrap();
        for line in text.lines().filter(|line| line.starts_with("token_file")) {
            secrets.add_file(line.split('"').nth(1).unwrap().as_ref());
        }
        let command = tollgate(&["keyring", "--config", config], &env);
        let is_serving = fields_of("the keyring is serving");
        let (process, [_, serving]) = Watched::find(command, secrets, is_serving);
        let fields = found(&process, serving).await;
        Self { address: fields["listen"].as_str().unwrap().to_owned(), process }
    }

    /// A secret that it has handed out, and may not show either.
    pub fn has_secret(&self, secret: &str) {
        self.process.secrets.lock().unwrap().add(secret);
    }

    pub fn log(&self) -> String {
        self.process.stderr.text()
    }
}
