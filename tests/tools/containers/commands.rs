//! Every command that the documents give an operator for the image, in the image: it has no shell, no curl and no
//! tar.

use super::drills::{FAILS, Provider, accepts, serve};
use super::node::Node;
use crate::support::manifests::root;
use crate::support::until;

const DOCUMENTS: [&str; 5] =
    ["runbooks.md", "operations.md", "durability.md", "shared-spool.md", "fleet.md"];

/// Their lines that begin with `tollgate`, in words, as a shell would read them.
fn commands() -> Vec<(String, Vec<String>)> {
    let read = |name: &str| std::fs::read_to_string(root().join("docs").join(name)).unwrap();
    let mut found = Vec::new();
    for document in DOCUMENTS {
        for line in read(document).lines() {
            let Some(command) = line.strip_prefix("    ") else { continue };
            let command = command.trim();
            if command.starts_with("tollgate ") {
                let words = command.split(' ').map(|word| word.trim_matches('\'').to_owned());
                found.push((format!("{document}: {command}"), words.collect()));
            }
        }
    }
    found
}

pub(super) async fn of_the_documents(node: &Node) {
    let provider = Provider::start(FAILS).await;
    let (pod, volume) = (node.pod(), node.volume("emptydir"));
    let container = serve(&pod, &provider, &volume, &[]);
    accepts(&container, 30).await;
    let mut run = 0;
    for (shown, words) in commands() {
        // It is for a spool that no sidecar has: the drill of the claims runs it.
        if words.iter().skip(1).take(2).eq(["messages", "deliver"]) {
            continue;
        }
        let output = container.exec(&words);
        let said = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        // What needs a fleet, or a message with this id, says that it is not there; all else is done.
        let is_missing =
            ["does not share its ceilings", "is no message id", "(fleet.url)", "another process"];
        let is_explained =
            matches!(code, Some(1 | 2)) && is_missing.iter().any(|words| said.contains(words));
        assert!(code == Some(0) || is_explained, "{shown}: {code:?}: {said}");
        run += 1;
    }
    assert!(run > 25, "only {run} commands were found");
    // Two of them have dropped and replayed, and the sidecar is as well as before.
    let words = ["tollgate", "get", "/livez"].map(str::to_owned);
    until("it lives", async || container.exec(&words).stdout == b"ok\n").await;
}
