//! Tells the binary from which commit it was built.

#![allow(clippy::disallowed_methods, reason = "git is given no secret")]

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=TOLLGATE_COMMIT");
    // Git is asked for the paths, since a second work tree has no folder `.git`: for a path that is missing
    // cargo would build everything anew each time.
    for path in ["HEAD", "refs/heads"] {
        let output = Command::new("git").args(["rev-parse", "--git-path", path]).output();
        let found = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
        let found = found.map(|found| found.trim().to_owned());
        if let Some(found) = found.filter(|found| std::path::Path::new(found).exists()) {
            println!("cargo:rerun-if-changed={found}");
        }
    }
    // An image is built without the history and names the commit itself.
    let commit = std::env::var("TOLLGATE_COMMIT").ok().or_else(|| {
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !commit.is_empty()).then_some(commit)
    });
    println!("cargo:rustc-env=TOLLGATE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}
