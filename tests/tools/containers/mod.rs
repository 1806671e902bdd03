//! What a 202 is worth where pods end: the packed image in real containers, stopped, evicted and killed as a
//! kubelet and a kernel do it. docs/durability.md has the table. And the rendered manifests, from nothing to the first
//! message.

mod commands;
mod drills;
mod keyring;
mod kubelet;
mod newcomer;
mod node;
mod threads;

use std::io::Write;

use node::Node;

/// Past the harness, which shows what a test prints only if it fails.
fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// One node for all: a containerd and an image take seconds.
#[tokio::test]
async fn in_real_containers() {
    let node = match Node::start().await {
        Ok(node) => node,
        Err(why) => {
            say(&format!("NOT RUN: no containers on this machine, and so no drills: {why}"));
            return;
        }
    };
    let (pod, volume) = (node.pod(), node.volume("claim"));
    let idle = threads::idle(&pod, &volume).await;
    newcomer::paths(&node).await;
    keyring::hands_a_key_to_a_sidecar(&node).await;
    drills::restricted(&node).await;
    let mut drills = drills::all(&node).await;
    drills.push(drills::claims(&node).await);
    say("\n| drill | spool | accepted, promise | delivered | lost | reported lost |");
    say("| --- | --- | --- | --- | --- | --- |");
    for drill in &drills {
        say(&drill.row());
    }
    for drill in &drills {
        drill.holds();
    }
    idle.gets_no_thread().await;
    commands::of_the_documents(&node).await;
}
