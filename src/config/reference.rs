//! `config/tollgate.toml`: every key with its documentation and its default.

use super::row::{Preset, Reload, Row};
use super::sections::SECTIONS;

const HEADER: &str = r#"# Every key of tollgate, with its default. Generated from the table in src/config: change it there,
# then run UPDATE=1 cargo test --test contract config
#
# A line that begins with # and a name is a default: remove the # to change it. upstream.endpoint must
# be set, and upstream.instance_id unless upstream.instances names an instance for every topic. An example
# stands where a key has no default.
#
# Each key can also come from the environment, as TOLLGATE__SECTION__KEY with two underscores, for
# example TOLLGATE__PUBLISH__WAIT=2s; lists with commas, tables as TOML has them on one line:
# [{ instance_id = "post-cn-x", topics = ["Alarm/*"] }]. That wins over this file, and a flag
# --set publish.wait=2s wins over both. `tollgate check --config FILE` prints the value of each key,
# and where it came from.
#
# Durations are written as "250ms", "5s" or "1m 30s", sizes as "48KiB". A key that tollgate does not
# know is an error, not a warning.
#
# Behind a key stand the values that it takes. tollgate applies changes of keys marked "live" while it
# runs, a few seconds after SIGHUP or a change of this file. Changes of other keys wait for a restart.
"#;

/// The reference of all keys, as it is kept in `config/tollgate.toml`.
pub fn reference() -> String {
    let mut lines: Vec<_> = HEADER.lines().map(str::to_owned).collect();
    for rows in SECTIONS {
        for (index, row) in rows.iter().enumerate() {
            let (section, name) = row.name.rsplit_once('.').unwrap_or(("", row.name));
            if index == 0 {
                lines.push(String::new());
            }
            if index == 0 && !section.is_empty() {
                lines.push(format!("[{section}]"));
            } else if !row.documentation.is_empty() {
                lines.push(String::new());
            }
            // An example of tables stands below its key.
            let is_example = |line: &&str| line.starts_with(" [[");
            let end = row.documentation.iter().position(is_example);
            let (before, after) =
                row.documentation.split_at(end.unwrap_or(row.documentation.len()));
            lines.extend(before.iter().map(comment));
            lines.push(key(row, name));
            lines.extend(after.iter().map(comment));
        }
    }
    lines.join("\n") + "\n"
}

fn comment(line: &&str) -> String {
    if line.is_empty() { String::new() } else { format!("#{line}") }
}

fn key(row: &Row, name: &str) -> String {
    let line = match row.preset {
        Preset::Default(toml) | Preset::Example(toml) => format!("#{name} = {toml}"),
        Preset::Required(toml) => format!("{name} = {toml}"),
    };
    let reload = match row.reload {
        Reload::Restart => String::new(),
        Reload::Live => "live".to_owned(),
        Reload::LiveUnless(other) => format!("live, unless {other} changes as well"),
    };
    let notes: Vec<_> =
        [(row.range)(), reload].into_iter().filter(|note| !note.is_empty()).collect();
    if notes.is_empty() { line } else { format!("{line}  # {}", notes.join("; ")) }
}
