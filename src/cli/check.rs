//! `tollgate check`: is the configuration right, and what does it say?

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::{Flags, explain};

/// The contract's code for a configuration that is not valid.
const INVALID: u8 = 4;

/// Reads and validates the configuration, and prints it whole with the origin of each value.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tollgate check --config /etc/tollgate/tollgate.toml")]
pub struct Args {
    /// Where the configuration is.
    #[command(flatten)]
    pub flags: Flags,
}

/// Exits 0 for a valid configuration, 4 for an invalid one, with every mistake on stderr.
#[expect(clippy::needless_pass_by_value, reason = "every verb takes its arguments")]
pub fn run(args: Args) -> ExitCode {
    let written = match args.flags.load() {
        Ok(loaded) => {
            io::stdout().lock().write_all(explain(&loaded).as_bytes()).map(|()| ExitCode::SUCCESS)
        }
        Err(mistakes) => {
            writeln!(io::stderr().lock(), "{mistakes}").map(|()| ExitCode::from(INVALID))
        }
    };
    written.unwrap_or(ExitCode::FAILURE)
}
