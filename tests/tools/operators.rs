//! What the documents have an operator do from outside the image: lines of kubectl, and a Job for claims without a
//! pod. What they have run inside it is run in `containers/commands.rs`.

use std::process::Command;

use crate::support::manifests::{containers, not_restricted, of, rendered, root, tool};
use crate::support::redis::Redis;
use crate::support::secrets::SearchedNow as _;
use serde_json::json;

/// The lines of kubectl of a document, without what the shell does with them.
fn lines(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs").join(document)).unwrap();
    let indented = text.lines().filter_map(|line| line.strip_prefix("    "));
    let ours = indented.map(str::trim).filter(|line| line.starts_with("kubectl "));
    ours.map(|line| line.split([';', '|', '>']).next().unwrap().trim().to_owned()).collect()
}

/// kubectl understands each, and asks a server that is not there.
#[test]
fn kubectl_understands_its_lines() {
    let mut run = 0;
    let redis = Redis::start_with(&[]);
    for line in ["runbooks.md", "fleet.md", "durability.md"].into_iter().flat_map(lines) {
        let (ours, inside) = line.split_once(" -- ").unwrap_or((&line, ""));
        let mut args: Vec<_> = ours.split(' ').skip(1).collect();
        args.push("--server=http://127.0.0.1:1");
        if !inside.is_empty() {
            args.push("--");
            args.extend(inside.split(' '));
        }
        let said = tool("kubectl", &args);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("127.0.0.1:1") && said.contains("refused"), "{line}: {said}");
        // Redis's own image has its client.
        if let Some(args) = inside.strip_prefix("redis-cli ") {
            let port = redis.port.to_string();
            let client =
                Command::new("redis-cli").args(["-p", &port]).args(args.split(' ')).searched_now();
            assert!(client.unwrap().status.success(), "{line}");
        }
        run += 1;
    }
    assert!(run >= 8, "only {run} lines were found");
}

/// The Job for a claim without a pod is one that every version takes, restricted, and runs a verb that exists.
#[test]
fn the_job_that_delivers() {
    let folder = tempfile::tempdir().unwrap();
    let job = root().join("deploy/deliver-job.yaml");
    std::fs::copy(&job, folder.path().join("job.yaml")).unwrap();
    std::fs::write(folder.path().join("kustomization.yaml"), "resources: [job.yaml]\n").unwrap();
    let manifests = rendered("kubectl", &["kustomize", &folder.path().display().to_string()]);
    let template = &of(&manifests, "Job")["spec"]["template"];
    let pod = &template["spec"];
    // The monitor of sidecars scrapes it.
    let monitor = rendered("kubectl", &["kustomize", "deploy/kustomize/monitor"]);
    let monitor = &of(&monitor, "PodMonitor")["spec"];
    for (label, value) in monitor["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&template["metadata"]["labels"][label], value);
    }
    let endpoint = &monitor["podMetricsEndpoints"][0]["port"];
    let ports = containers(pod).next().unwrap()["ports"].as_array().unwrap();
    assert!(ports.iter().any(|port| &port["name"] == endpoint), "{ports:?}");
    assert_eq!(not_restricted(pod), Vec::<String>::new());
    assert_eq!(pod["securityContext"]["fsGroup"], 65_532);
    let container = containers(pod).next().unwrap();
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    let args = container["args"].as_array().unwrap();
    assert_eq!(args[..2], [json!("messages"), json!("deliver")]);
    let mut verb = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let args = args.iter().map(|arg| arg.as_str().unwrap()).filter(|arg| !arg.contains("/etc/"));
    verb.args(args.filter(|arg| *arg != "--config").map(|arg| arg.replace("/var/lib", "/nowhere")));
    let environment = container["env"].as_array().unwrap();
    verb.envs(
        environment
            .iter()
            .map(|set| (set["name"].as_str().unwrap(), set["value"].as_str().unwrap())),
    );
    verb.args(["--set", "upstream.endpoint=http://127.0.0.1:1", "--set", "upstream.instance_id=i"]);
    let said = verb.searched_now().unwrap();
    let said = String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("there is no spool at /nowhere/tollgate/spool"), "{said}");
}
