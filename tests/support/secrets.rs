//! What no process of a test may show: secrets of the tests, and those that one process was given or has handed out.

use std::io;
use std::process::Output;

/// One a line. `tests/searched.sh` searches what a test run prints for them.
const OF_TESTS: &str = include_str!("secrets.txt");

/// Secrets that a process was given: by its environment, and in the files that its settings name.
pub struct Secrets(Vec<String>);

impl Default for Secrets {
    /// Those of all tests.
    fn default() -> Self {
        Self(OF_TESTS.lines().map(str::to_owned).collect())
    }
}

impl Secrets {
    /// Shorter ones are found in other words.
    const SHORTEST: usize = 8;

    pub fn given<'a>(
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

    pub fn add(&mut self, secret: &str) {
        if secret.len() >= Self::SHORTEST {
            self.0.push(secret.to_owned());
        }
    }

    pub fn add_file(&mut self, path: &std::path::Path) {
        // What cannot be read is no secret of the process's either.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for line in text.lines() {
            self.add(line.trim());
        }
    }

    /// None of them is in what a program has shown that has ended.
    pub fn search(&self, output: &Output) {
        for shown in [&output.stdout, &output.stderr] {
            self.assert_unseen(&String::from_utf8_lossy(shown));
        }
    }

    /// None of them is in what a process has shown.
    pub fn assert_unseen(&self, shown: &str) {
        for secret in &self.0 {
            assert!(!shown.contains(secret.as_str()), "a secret is shown: {secret}\n{shown}");
        }
    }
}

/// Runs a program to its end, and searches what it has shown.
pub trait Searched {
    fn searched(&mut self) -> impl Future<Output = io::Result<Output>> + use<Self>;
}

impl Searched for tokio::process::Command {
    #[allow(clippy::disallowed_methods, reason = "it is searched here")]
    fn searched(&mut self) -> impl Future<Output = io::Result<Output>> + use<> {
        let output = self.output();
        async { output.await.inspect(search) }
    }
}

/// The same, and blocks.
pub trait SearchedNow {
    fn searched_now(&mut self) -> io::Result<Output>;
}

impl SearchedNow for std::process::Command {
    #[allow(clippy::disallowed_methods, reason = "it is searched here")]
    fn searched_now(&mut self) -> io::Result<Output> {
        self.output().inspect(search)
    }
}

/// What a program has shown that has ended.
pub fn search(output: &Output) {
    Secrets::default().search(output);
}
