//! The floors of the house: an arrow between rooms goes down, never up, and on floors 1 and 3
//! never sideways.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Room and floor. Words that all share are below the ground.
const FLOORS: [(&str, i8); 21] = [
    ("cli", 5),
    ("sidecar", 4),
    ("publish", 3),
    ("telemetry", 3),
    ("control", 3),
    ("delivery", 2),
    ("ceiling", 1),
    ("upstream", 1),
    ("meter", 1),
    ("spool", 1),
    ("keys", 0),
    ("signing", 0),
    ("server", 0),
    ("log_limiter", 0),
    ("redis_client", 0),
    ("deadline", 0),
    ("backoff", 0),
    ("message", -1),
    ("answer", -1),
    ("config", -1),
    ("emulator", -2),
];

/// A call is made with a permit or not at all.
const EXCEPTIONS: [(&str, &str); 1] = [("upstream", "ceiling")];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn allowed(from: (&str, i8), to: (&str, i8)) -> bool {
    if from.0 == to.0 || EXCEPTIONS.contains(&(from.0, to.0)) {
        return true;
    }
    match (from.1, to.1) {
        // Nobody but the command line knows the emulator, and it knows nobody.
        (5, -2) => true,
        (_, -2) | (-2, _) => false,
        // Words may be made of other words; signing may know what a key is.
        (-1, -1) | (0, 0) => true,
        (from, to) => to < from,
    }
}

#[test]
fn arrows_go_down() {
    let floors: BTreeMap<_, _> = FLOORS.into();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut arrows = 0;
    for file in files {
        let path = file.strip_prefix(&src).unwrap();
        let room = path.components().next().unwrap().as_os_str().to_string_lossy();
        let room = room.trim_end_matches(".rs");
        if ["lib", "main"].contains(&room) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for target in code.flat_map(|line| line.split("crate::").skip(1)) {
            let target: Vec<&str> = match target.strip_prefix('{') {
                Some(list) => list.split(',').map(str::trim).collect(),
                None => vec![target],
            };
            for target in target {
                let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let target = target.split(|c| !name(c)).next().unwrap();
                let from = floors.get(room).unwrap_or_else(|| panic!("{room} is on no floor"));
                let to = floors.get(target).unwrap_or_else(|| panic!("{target} is on no floor"));
                arrows += 1;
                if !allowed((room, *from), (target, *to)) {
                    wrong.push(format!("{}: {room} -> {target}", path.display()));
                }
            }
        }
    }
    assert!(arrows > 50, "only {arrows} arrows were found: does this test still read the code?");
    assert!(wrong.is_empty(), "arrows that go up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn the_rule_can_fail() {
    assert!(!allowed(("ceiling", 1), ("meter", 1)));
    assert!(!allowed(("meter", 1), ("delivery", 2)));
    assert!(!allowed(("emulator", -2), ("signing", 0)));
    assert!(!allowed(("delivery", 2), ("emulator", -2)));
    assert!(allowed(("delivery", 2), ("ceiling", 1)));
}

/// No file is two ideas.
#[test]
fn files_are_short() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines", file.display());
    }
}
