//! The commands of the documents about Kubernetes run, in their order, on a copy of `deploy/`.

use std::path::Path;
use std::process::Command;

use super::{read, root};
use crate::support::secrets::SearchedNow as _;

/// The files that the document has, by the path in their first line.
fn files(folder: &Path) {
    let text = read("docs/kubernetes.md");
    let mut written = Vec::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (_, content) = block.split_once('\n').unwrap();
        let path = content.lines().next().unwrap().strip_prefix("# ").expect("a path");
        let at = folder.join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        // Their Git is no part of this test.
        let content = content.replace("https://git.example.com/tollgate.git//", "../");
        std::fs::write(at, content.replace("?ref=COMMIT", "")).unwrap();
        written.push(path);
    }
    assert_eq!(
        written,
        [
            "orders/kustomization.yaml",
            "orders/tollgate.toml",
            "my-values.yaml",
            "keyring-values.yaml"
        ]
    );
    let workload = read("deploy/kustomize/example/orders.yaml");
    std::fs::write(folder.join("orders/orders.yaml"), workload).unwrap();
}

#[test]
fn what_the_documents_say() {
    let folder = tempfile::tempdir().unwrap();
    let copied =
        Command::new("cp").arg("-r").arg(root().join("deploy")).arg(folder.path()).status();
    assert!(copied.unwrap().success());
    files(folder.path());
    let mut run = 0;
    for path in ["docs/operations.md", "docs/kubernetes.md", "deploy/helm/tollgate/README.md"] {
        let text = read(path);
        let commands = text.lines().filter_map(|line| line.strip_prefix("    "));
        for command in commands.filter(|line| !line.starts_with([' ', '{'])) {
            let words: Vec<_> = command.split(' ').collect();
            let mut args: Vec<&str> = words[1..].to_vec();
            match (words[0], args[0]) {
                // What would change a cluster is only rendered.
                ("helm", "install") => args[0] = "template",
                ("kubectl", "apply") => (args[0], args[1]) = ("kustomize", "--output=/dev/stdout"),
                ("kubectl", "create") => args.extend(["--dry-run=client", "-o", "yaml"]),
                ("helm", "template" | "dependency") | ("kubectl", "kustomize") => {}
                ("make", target) => {
                    assert!(read("Makefile").contains(&format!("\n{target}:")), "{command}");
                    continue;
                }
                // Run on each configuration that is rendered; and what only a cluster answers.
                ("tollgate", "check") | ("helm", "test") => continue,
                _ => panic!("{path} has a command that no test runs: {command}"),
            }
            args.iter_mut().filter(|arg| **arg == "NAME").for_each(|name| *name = "shop");
            let binary = root().join("target/test-tools").join(words[0]);
            let output =
                Command::new(binary).args(&args).current_dir(folder.path()).searched_now().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !output.stdout.is_empty(), "{command}: {said}");
            run += 1;
        }
    }
    assert!(run >= 6, "{run}");
}
