//! HTTP clients as apps use them, over connections that they keep: no message fails because one before
//! it was refused, and every refusal is read.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::script::Script;
use crate::support::secrets::Searched as _;
use crate::support::{config, sidecar};
use tokio::process::Command;
use tokio::time::{Duration, timeout};

/// Two thousand requests, on a machine that does other things as well.
const BOUND: Duration = Duration::from_mins(5);
const MESSAGES: usize = 1_000;

/// Refused requests of every kind: status, method, path, header, bytes.
fn refused() -> Vec<(u16, &'static str, &'static str, String, usize)> {
    let none = || "-".to_owned();
    vec![
        (400, "POST", "/publish/x", none(), 48_000),
        (403, "POST", "/publish/Other", none(), 48_000),
        (404, "POST", "/nothing", none(), 48_000),
        (405, "PUT", "/publish/TopicA", none(), 48_000),
        (415, "POST", "/publish", "Content-Type: text/plain".to_owned(), 48_000),
        (415, "POST", "/publish/TopicA", "Content-Encoding: gzip".to_owned(), 48_000),
        (400, "POST", "/publish/TopicA", "Idempotency-Key: \"open".to_owned(), 1_000),
        (403, "POST", "/publish/TopicA", "Origin: https://evil.example".to_owned(), 48_000),
        (403, "POST", "/publish/TopicA", "Sec-Fetch-Site: cross-site".to_owned(), 100),
        (413, "POST", "/publish/TopicA", none(), 60_000),
        (413, "POST", "/publish/TopicA", none(), 900_000),
        (413, "POST", "/publish/TopicA", none(), 3_000_000),
        (431, "POST", "/publish/TopicA", format!("X-Long: {}", "y".repeat(20_000)), 48_000),
    ]
}

/// Every other request is a good one.
fn plan() -> String {
    let (refused, mut plan) = (refused(), String::new());
    for n in 0..MESSAGES {
        writeln!(plan, "200\tPOST\t/publish/TopicA\t-\t{}", (n * 977) % 48_000).unwrap();
        let (status, method, path, header, bytes) = &refused[n % refused.len()];
        writeln!(plan, "{status}\t{method}\t{path}\t{header}\t{bytes}").unwrap();
    }
    plan
}

/// The same for curl, which keeps its connection over all of them and asks for HTTP/2.
fn curl_config(plan: &str, address: &str, folder: &Path) -> String {
    let mut text = String::new();
    for row in plan.lines() {
        let [_, method, path, header, bytes] = row.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let body = folder.join(bytes);
        if !body.exists() {
            std::fs::write(&body, vec![b'x'; bytes.parse().unwrap()]).unwrap();
        }
        let header = if header == "-" { "X-None: 1" } else { header };
        writeln!(
            text,
            "http2\nurl = \"http://{address}{path}\"\nrequest = {method}\nheader = \"{}\"\n\
             data-binary = \"@{}\"\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\nnext",
            header.replace('"', "\\\""),
            body.display()
        )
        .unwrap();
    }
    text.trim_end_matches("next\n").to_owned()
}

async fn output(program: &Path, arguments: &[&str]) -> String {
    let run = Command::new(program)
        .args(arguments)
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("JAVA_TOOL_OPTIONS")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .searched();
    let ended = timeout(BOUND, run).await.expect("it ends");
    let name = program.display();
    let ended = ended.unwrap_or_else(|error| panic!("{name}: {error}: run tests/setup.sh"));
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{name} {}: {errors}", ended.status);
    String::from_utf8(ended.stdout).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Sends the plan with a client that takes an address and a plan, and looks at what arrived.
async fn all_are_answered(program: &Path, before: &[&str]) {
    let plan = plan();
    let script = Script::start([]).await;
    let flags = [("topics.allow", "TopicA"), ("ceilings.account", "100000")];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.tsv");
    std::fs::write(&file, &plan).unwrap();
    let arguments = [before, &[&*address, file.to_str().unwrap()]].concat();
    let printed = output(program, &arguments).await;
    assert_eq!(printed.trim_end(), format!("sent {}", plan.lines().count()));
    assert_eq!(script.requests().len(), MESSAGES);
}

fn python() -> PathBuf {
    let python = root().join("target/test-venv/bin/python");
    assert!(python.exists(), "requests and aiohttp are not installed: run tests/setup.sh");
    python
}

async fn with_python(library: &str) {
    let client = root().join("tests/clients/client.py");
    all_are_answered(&python(), &[client.to_str().unwrap(), library]).await;
}

#[tokio::test]
async fn python_http_client() {
    with_python("http.client").await;
}

#[tokio::test]
async fn python_requests() {
    with_python("requests").await;
}

#[tokio::test]
async fn python_aiohttp() {
    with_python("aiohttp").await;
}

async fn with_node(library: &str) {
    let client = root().join("tests/clients/client.mjs");
    all_are_answered(Path::new("node"), &[client.to_str().unwrap(), library]).await;
}

#[tokio::test]
async fn node_fetch() {
    with_node("fetch").await;
}

#[tokio::test]
async fn node_http_agent() {
    with_node("agent").await;
}

#[tokio::test]
async fn java_http_client() {
    let client = root().join("tests/clients/Client.java");
    all_are_answered(Path::new("java"), &["-Xmx256m", client.to_str().unwrap()]).await;
}

#[tokio::test]
async fn curl_that_asks_for_http2() {
    let script = Script::start([]).await;
    let flags = [("topics.allow", "TopicA"), ("ceilings.account", "100000")];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let folder = tempfile::tempdir().unwrap();
    let (plan, file) = (plan(), folder.path().join("curl.config"));
    std::fs::write(&file, curl_config(&plan, &address, folder.path())).unwrap();
    let arguments = ["--silent", "--show-error", "--noproxy", "*", "--config"];
    let arguments = [&arguments[..], &[file.to_str().unwrap()]].concat();
    let told = output(Path::new("curl"), &arguments).await;
    let expected: Vec<_> = plan.lines().map(|row| row.split('\t').next().unwrap()).collect();
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    assert_eq!(script.requests().len(), MESSAGES);
}
