//! Which module may use which: imports between modules go down a layer, never up, and on layers 1
//! and 3 never sideways. Within a module, files do not import each other in a circle.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Module and layer. Types that all modules share are below layer 0.
const LAYERS: [(&str, i8); 30] = [
    ("cli", 5),
    ("sidecar", 4),
    ("publish", 3),
    ("telemetry", 3),
    ("control", 3),
    ("keyring", 3),
    ("delivery", 2),
    ("passthrough", 2),
    ("ceiling", 1),
    ("upstream", 1),
    ("meter", 1),
    ("spool", 1),
    ("keys", 0),
    ("signing", 0),
    ("verification", 0),
    ("callers", 0),
    ("server", 0),
    ("log_limiter", 0),
    ("redis_client", 0),
    ("deadline", 0),
    ("backoff", 0),
    ("fair_queue", 0),
    ("histogram", 0),
    ("traces", 0),
    ("message", -1),
    ("action", -1),
    ("answer", -1),
    ("config", -1),
    ("memory", -1),
    ("emulator", -2),
];

/// A call is made with a permit or not at all; the emulated provider checks signatures as callers' are checked.
const EXCEPTIONS: [(&str, &str); 2] = [("upstream", "ceiling"), ("emulator", "verification")];

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
        // Only the command line uses the emulator, which uses no other module but the one above.
        (5, -2) => true,
        (_, -2) | (-2, _) => false,
        // Shared types may be made of each other; signing uses the key.
        (-1, -1) | (0, 0) => true,
        (from, to) => to < from,
    }
}

#[test]
fn imports_go_down() {
    let layers: BTreeMap<_, _> = LAYERS.into();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut imports = 0;
    for file in files {
        let path = file.strip_prefix(&src).unwrap();
        let module = path.components().next().unwrap().as_os_str().to_string_lossy();
        let module = module.trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
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
                let from = layers.get(module).unwrap_or_else(|| panic!("{module} is on no layer"));
                let to = layers.get(target).unwrap_or_else(|| panic!("{target} is on no layer"));
                imports += 1;
                if !allowed((module, *from), (target, *to)) {
                    wrong.push(format!("{}: {module} -> {target}", path.display()));
                }
            }
        }
    }
    assert!(imports > 50, "only {imports} imports were found: does this test still read the code?");
    assert!(wrong.is_empty(), "imports that go up or sideways:\n{}", wrong.join("\n"));
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

/// The path of a file's module below `src/`: `spool/index.rs` and `spool/index/mod.rs` are
/// `["spool", "index"]`.
fn module_of(file: &Path) -> Vec<String> {
    let path = file.with_extension("");
    let mut parts: Vec<_> =
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The code of a file without comments and without what follows its first `#[cfg(test)]`.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// All paths that a use tree such as `a::{b, c::{self, d as e}}` names.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((before, list)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let list = list.rsplit_once('}').map_or(list, |(list, _)| list);
    let before: Vec<_> = before
        .trim()
        .trim_end_matches("::")
        .split("::")
        .map(|part| part.trim().to_owned())
        .collect();
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (at, c) in list.char_indices().chain([(list.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !list[start..at].trim().is_empty() {
                    let inner = expand(&list[start..at]).into_iter();
                    paths.extend(inner.map(|path| [before.clone(), path].concat()));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

/// Every path in this code that begins with `crate`, `self` or `super`, or is a use of a child
/// module, as a path from the crate's root, each with the name that it gets in this module.
fn paths(module: &[String], code: &str) -> Vec<(Vec<String>, String)> {
    let mut all = Vec::new();
    for statement in code.split(';') {
        let at = statement.rfind("use ").filter(|at| {
            let before = statement[..*at].chars().next_back();
            before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_')
        });
        if let Some(at) = at {
            for path in expand(&statement[at + 4..]) {
                let alias = path.iter().rfind(|part| *part != "self").unwrap().clone();
                all.push((path, alias));
            }
        }
        // Paths written out where they are used.
        for start in ["crate::", "super::", "self::"] {
            for (at, _) in statement.match_indices(start) {
                let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                let path = statement[at..].split(|c| !name(c)).next().unwrap();
                let path: Vec<_> =
                    path.split("::").filter(|p| !p.is_empty()).map(str::to_owned).collect();
                if path.len() > 1 {
                    all.push((path, String::new()));
                }
            }
        }
    }
    let rooted = |path: Vec<String>| -> Vec<String> {
        let mut base = module.to_vec();
        let mut rest = path.as_slice();
        match rest.first().map(String::as_str) {
            Some("crate") => (base, rest) = (Vec::new(), &rest[1..]),
            Some("self") => rest = &rest[1..],
            _ => {
                while rest.first().is_some_and(|part| part == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
        }
        base.extend(rest.iter().filter(|part| *part != "self").cloned());
        base
    };
    all.into_iter().map(|(path, alias)| (rooted(path), alias)).collect()
}

/// Which file's module each module of `files` imports from: re-exports are followed, parents and
/// children left out.
fn imports(files: &BTreeMap<Vec<String>, String>) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let all: BTreeMap<_, _> =
        files.iter().map(|(module, code)| (module.clone(), paths(module, code))).collect();
    let find = |path: &[String]| {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let module =
                (1..=path.len()).rev().map(|n| &path[..n]).find(|m| all.contains_key(*m))?;
            let Some(name) = path.get(module.len()) else { return Some(module.to_vec()) };
            let exported = all[module].iter().find(|(to, alias)| alias == name && *to != path);
            match exported {
                Some((to, _)) => path = [to, &path[module.len() + 1..]].concat(),
                None => return Some(module.to_vec()),
            }
        }
        None
    };
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for (module, paths) in &all {
        for target in paths.iter().filter_map(|(path, _)| find(path)) {
            if !target.starts_with(module) && !module.starts_with(&target) {
                found.entry(module.clone()).or_default().insert(target);
            }
        }
    }
    found
}

/// Modules that import each other in a circle: each that reaches itself, with what it reaches and
/// is reached from.
fn circles(imports: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> BTreeSet<BTreeSet<String>> {
    let reach = |from: &Vec<String>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            for to in imports.get(module).into_iter().flatten() {
                if seen.insert(to) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|module| (module, reach(module))).collect();
    let circle = |module: &Vec<String>| -> BTreeSet<String> {
        let together = reached[module]
            .iter()
            .filter(|to| reached.get(**to).is_some_and(|back| back.contains(module)));
        together.map(|module| module.join("::")).collect()
    };
    imports.keys().map(circle).filter(|circle| !circle.is_empty()).collect()
}

fn read_all() -> BTreeMap<Vec<String>, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let read = files.iter().map(|file| {
        let module = module_of(file.strip_prefix(&src).unwrap());
        (module, code_of(&std::fs::read_to_string(file).unwrap()))
    });
    read.filter(|(module, _)| {
        let tests = |part: &String| part == "tests" || part == "model";
        !module.iter().any(tests) && module.first().is_some_and(|m| m != "lib" && m != "main")
    })
    .collect()
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let imports = imports(&read_all());
    let arrows: usize = imports.values().map(BTreeSet::len).sum();
    assert!(arrows > 300, "only {arrows} imports were found: does this test still read the code?");
    let circles = circles(&imports);
    assert!(circles.is_empty(), "circles: {circles:#?}");
}

#[test]
fn a_circle_is_found() {
    let file =
        |path: &str, code: &str| (path.split("::").map(str::to_owned).collect(), code.to_owned());
    let of = |files: &[(Vec<String>, String)]| circles(&imports(&files.iter().cloned().collect()));
    let parent = file("a", "mod b; mod c; pub use b::B; use c::C;");
    let uses_c = file("a::b", "use super::{x, c::{self, C}};");
    assert!(of(&[parent.clone(), uses_c.clone(), file("a::c", "use std::fmt;")]).is_empty());
    // Straight, through what the parent exports, and written out.
    for back in [
        "use super::b::B;",
        "use super::B;",
        "use crate::a::B as Other;",
        "let x = super::B::new();",
    ] {
        let found = of(&[parent.clone(), uses_c.clone(), file("a::c", back)]);
        let names: BTreeSet<_> = ["a::b", "a::c"].map(str::to_owned).into();
        assert_eq!(found, BTreeSet::from([names]), "{back}");
    }
}
