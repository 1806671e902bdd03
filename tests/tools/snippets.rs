//! The programs of `docs/clients.md` run as they stand there: with an upstream that delivers, one that fails
//! first, and one that refuses.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::support::script::{Say, Script, error};
use crate::support::secrets::Searched as _;
use crate::support::{config, sidecar};
use tokio::process::Command;
use tokio::time::{Duration, timeout};

/// A JVM that starts beside other tests.
const BOUND: Duration = Duration::from_mins(2);
const DOCUMENT: &str = include_str!("../../docs/clients.md");

/// The one program of the document in this language, which publishes to this address.
fn program(language: &str, address: &str) -> String {
    let start = format!("\n```{language}\n");
    let mut blocks = DOCUMENT.split(&start).skip(1);
    let block = blocks.next().unwrap_or_else(|| panic!("no program in {language}"));
    assert!(blocks.next().is_none(), "one program in {language}");
    let (program, _) = block.split_once("\n```").unwrap();
    assert_eq!(program.matches("127.0.0.1:8080").count(), 1);
    program.replace("127.0.0.1:8080", address) + "\n"
}

async fn run(language: &str, command: &[&Path], file: &str, address: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(file), program(language, address)).unwrap();
    let run = Command::new(command[0])
        .args(&command[1..])
        .arg(file)
        .current_dir(folder.path())
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("JAVA_TOOL_OPTIONS")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .searched();
    let name = command[0].display();
    let ended = timeout(BOUND, run).await.expect("it ends");
    ended.unwrap_or_else(|error| panic!("{name}: {error}: run tests/setup.sh"))
}

/// The program in three situations: what the upstream says first, how many calls there are in the end, and
/// whether the message is delivered.
async fn publishes(language: &str, command: &[&Path], file: &str) {
    let fails = error(500, "SendMessageFailed");
    for (says, calls, delivered) in [
        (vec![], 1, true),
        // One request has as many calls as tollgate makes by itself.
        (vec![fails; 3], 4, true),
        (vec![error(400, "ParameterCheckFailed")], 1, false),
    ] {
        let script: Script = Script::start(says as Vec<Say>).await;
        let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
        let Output { status, stdout, stderr } = run(language, command, file, &address).await;
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert_eq!(status.success(), delivered, "{language}: {out}\n{err}");
        let words = if delivered { "MsgId" } else { "urn:tollgate:refused" };
        assert!(out.contains(words) || err.contains(words), "{language}: {out}\n{err}");
        let requests = script.requests();
        assert_eq!(requests.len(), calls, "{language}: {out}\n{err}");
        // The bytes are those of the program, with the end of the line.
        assert!(requests.iter().all(|call| call.contains("Payload=aGVsbG8K&")), "{requests:?}");
    }
}

fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python");
    assert!(python.exists(), "requests is not installed: run tests/setup.sh");
    python
}

#[tokio::test]
async fn snippet_curl() {
    publishes("sh", &["sh".as_ref()], "publish.sh").await;
}

#[tokio::test]
async fn snippet_python() {
    publishes("python", &[&python()], "publish.py").await;
}

#[tokio::test]
async fn snippet_node() {
    publishes("js", &["node".as_ref()], "publish.mjs").await;
}

#[tokio::test]
async fn snippet_go() {
    // Its home may not be there.
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/go-cache");
    let cache = format!("GOCACHE={}", cache.display());
    publishes("go", &["env", &cache, "go", "run"].map(Path::new), "publish.go").await;
}

#[tokio::test]
async fn snippet_java() {
    publishes("java", &["java".as_ref(), "-Xmx256m".as_ref()], "Publish.java").await;
}

/// A program of the document that no test runs would be one that is not known to work.
#[test]
fn every_program_is_run() {
    let fences = DOCUMENT.lines().filter_map(|line| line.strip_prefix("```"));
    let languages: Vec<_> = fences.filter(|language| !language.is_empty()).collect();
    assert_eq!(languages, ["sh", "python", "js", "go", "java"]);
}
