//! `tollgate check`: validates the configuration and prints it.

use std::io::Write;
use std::process::ExitCode;

use super::run::{VerbError, finish, print};
use crate::config::{Flags, explain};

/// Validate the configuration, and print all of it with the origin of each value
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tollgate check --config /etc/tollgate/tollgate.toml")]
pub struct Args {
    /// Where the configuration is.
    #[command(flatten)]
    pub flags: Flags,
}

/// Exits with 0 for a valid configuration, and with 4 for an invalid one, with all its errors on stderr.
#[expect(clippy::needless_pass_by_value, reason = "every verb takes its arguments")]
pub fn run(args: Args) -> ExitCode {
    let loaded = args.flags.load().map_err(VerbError::from);
    let printed = loaded.and_then(|loaded| print(|to| to.write_all(explain(&loaded).as_bytes())));
    finish("check", printed)
}
