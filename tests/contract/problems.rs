//! `docs/problems.md` lists every problem that there is, and the description of the callers' listener has
//! those that this one answers.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tollgate::server::Slug;

const CATALOGUE: &str = include_str!("../../docs/problems.md");
const DESCRIPTION: &str = include_str!("../../src/publish/openapi.json");

/// Slug and status of the rows of the sections with these titles.
fn listed(titles: &[&str]) -> Vec<(String, u64)> {
    let sections = CATALOGUE.split("\n## ").skip(1);
    let sections = sections.filter(|section| titles.iter().any(|title| section.starts_with(title)));
    let rows = sections.flat_map(|section| section.lines().filter(|line| line.starts_with("| `")));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{line}");
        (cells[0].trim_matches('`').to_owned(), cells[1].parse().unwrap())
    };
    rows.map(row).collect()
}

const CALLERS: [&str; 2] = ["Every listener", "The callers' listener"];
const ALL: [&str; 4] = [CALLERS[0], CALLERS[1], "The control socket", "The keyring"];

#[test]
fn all_problems_are_in_the_catalogue() {
    let listed = listed(&ALL);
    assert_eq!(listed.len(), CATALOGUE.lines().filter(|line| line.starts_with("| `")).count());
    let slugs: Vec<_> = listed.iter().map(|(slug, _)| slug.as_str()).collect();
    let known: Vec<_> = Slug::ALL.iter().map(|slug| slug.as_str()).collect();
    assert_eq!(
        slugs, known,
        "docs/problems.md and src/server/slug.rs have the same, in the same order"
    );
    assert_eq!(known.iter().collect::<BTreeSet<_>>().len(), known.len(), "each is there once");
}

/// A problem that no code answers any more is no problem.
#[test]
fn each_is_answered_by_some_code() {
    fn code(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                code(&path, text);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("slug.rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    for slug in Slug::ALL {
        let name = format!("Slug::{slug:?}");
        let is_used = text.match_indices(&name).any(|(at, _)| {
            let next = text[at + name.len()..].chars().next();
            next.is_none_or(|next| !next.is_ascii_alphanumeric())
        });
        assert!(is_used, "{slug}");
    }
}

#[test]
fn the_description_has_those_of_its_listener() {
    let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
    let listed: BTreeSet<_> = listed(&CALLERS).into_iter().collect();
    let mut described = BTreeSet::new();
    let responses = description["components"]["responses"].as_object().unwrap().values();
    let operations = description["paths"].as_object().unwrap().values();
    let operations = operations.flat_map(|path| path.as_object().unwrap().values());
    let of_operations =
        operations.flat_map(|operation| operation["responses"].as_object().unwrap().values());
    for response in responses.chain(of_operations) {
        let schema =
            &response["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"];
        let Some(status) = schema["status"]["const"].as_u64() else { continue };
        for slug in schema["type"]["enum"].as_array().unwrap() {
            let slug = slug.as_str().unwrap().strip_prefix("urn:tollgate:").unwrap();
            described.insert((slug.to_owned(), status));
        }
    }
    // A line's, whose status is the line's `httpStatus`.
    described.insert(("malformed-line".to_owned(), 400));
    assert_eq!(described, listed);
}
