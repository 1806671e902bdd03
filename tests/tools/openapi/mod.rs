//! The description of the callers' listener, held against a running one: each status that it has is provoked,
//! and each answer has the status, the headers and the members that it says, and no other.

mod exchanges;
mod outcomes;
mod requests;

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::support::secrets::Searched as _;
use exchanges::Exchanges;

const DESCRIPTION: &str = "src/publish/openapi.json";

/// What no exchange of this test shows. 500 is a bug; 414 and 431 are answered before the method is known, with
/// a body that a `HEAD` does not have.
const UNSEEN: [&str; 14] = [
    "/healthz get 500",
    "/healthz head 414",
    "/healthz head 431",
    "/healthz head 500",
    "/messages/{Id} get 500",
    "/messages/{Id} head 414",
    "/messages/{Id} head 431",
    "/messages/{Id} head 500",
    "/openapi.json get 500",
    "/openapi.json head 414",
    "/openapi.json head 431",
    "/openapi.json head 500",
    "/publish post 500",
    "/publish/{topic} post 500",
];
const UNSEEN_TYPES: [&str; 3] = [
    "bug",
    // tests/contract/memory.rs
    "memory-full",
    // tests/contract/spool_http.rs: a disk that is full
    "spool-unavailable",
];

/// What the validator finds.
async fn validated(description: &Path, exchanges: &Exchanges) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/test-venv/bin/python");
    assert!(python.exists(), "the validator is not installed: run tests/setup.sh");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("exchanges.jsonl");
    std::fs::write(&file, exchanges.lines()).unwrap();
    let run = Command::new(python)
        .arg(root.join("tests/python/openapi.py"))
        .args([description, &*file])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .searched();
    let output = run.await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn words(found: &Value) -> Vec<&str> {
    found.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_answer_is_as_described() {
    let mut exchanges = Exchanges::default();
    requests::all(&mut exchanges).await;
    outcomes::all(&mut exchanges).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = validated(&root.join(DESCRIPTION), &exchanges).await;
    let differences = words(&found["differences"]);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(words(&found["unseen"]), UNSEEN);
    assert_eq!(words(&found["unseen_types"]), UNSEEN_TYPES);
    assert!(found["exchanges"].as_u64() > Some(100), "{}", found["exchanges"]);
}

/// The validator finds what a description lacks, or has too much.
#[tokio::test]
async fn a_wrong_description_is_found_out() {
    let mut exchanges = Exchanges::default();
    outcomes::delivered_and_refused(&mut exchanges).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(DESCRIPTION)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("openapi.json");
    let schemas = "/components/schemas";
    let publish = "/paths/~1publish~1{topic}/post/responses";
    for (pointer, removed, words) in [
        (format!("{schemas}/Delivered/properties"), "Attempts", "Unevaluated properties"),
        (format!("{schemas}/Problem/properties"), "outcome", "Unevaluated properties"),
        (format!("{schemas}/Result/properties"), "line", "Unevaluated properties"),
        (publish.to_owned(), "422", "status 422 is not described"),
        (format!("{publish}/200/headers"), "RateLimit", "the header ratelimit is not described"),
        (format!("{publish}/422/content"), "application/problem+json", "is not described"),
        ("/info".to_owned(), "title", "the description: 'title' is a required property"),
    ] {
        let mut description: Value = serde_json::from_str(&text).unwrap();
        let part = description.pointer_mut(&pointer).and_then(Value::as_object_mut).unwrap();
        part.remove(removed).unwrap_or_else(|| panic!("{pointer} has no {removed}"));
        std::fs::write(&file, description.to_string()).unwrap();
        let found = validated(&file, &exchanges).await;
        let differences = found["differences"].to_string();
        assert!(differences.contains(words), "{pointer} {removed}: {differences}");
    }
}
