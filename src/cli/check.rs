//! `tollgate check`: validates the configuration and prints it.

use std::io::Write;
use std::process::ExitCode;

use super::probe::{self, Probe};
use super::run::{VerbError, finish, print, runtime};
use super::{memory_share, open_files, spool_room};
use crate::config::{Config, Flags, explain};

/// Validate the configuration, and print all of it with the origin of each value
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  tollgate check --config /etc/tollgate/tollgate.toml
  tollgate check --probe

Exit codes: 0 valid, 1 a probe failed, 4 invalid.")]
pub struct Args {
    /// Where the configuration is.
    #[command(flatten)]
    pub flags: Flags,
    /// Also try the folders, key, password and certificate files, and resolve names; sends no message
    #[arg(long)]
    pub probe: bool,
}

/// Exits with 0 for a valid configuration, with 4 for an invalid one, with all its errors on stderr,
/// and with 1 where a probe failed.
#[expect(clippy::needless_pass_by_value, reason = "every verb takes its arguments")]
pub fn run(args: Args) -> ExitCode {
    let loaded = args.flags.load().map_err(VerbError::from);
    let checked = loaded.and_then(|mut loaded| {
        print(|to| to.write_all(explain(&loaded).as_bytes()))?;
        if let Some(clamped) = open_files::clamp(&mut loaded.config) {
            print(|to| writeln!(to, "warning: {clamped}"))?;
        }
        if let Some(clamped) = memory_share::clamp(&mut loaded.config) {
            print(|to| writeln!(to, "note: {clamped}"))?;
        }
        if let Some(too_small) = spool_room::find(&loaded.config)? {
            print(|to| writeln!(to, "warning: {too_small}"))?;
        }
        if args.probe { probed(&loaded.config) } else { Ok(()) }
    });
    finish("check", checked)
}

fn probed(config: &Config) -> Result<(), VerbError> {
    let runtime = runtime(1)?;
    let probes = runtime.block_on(probe::all(config));
    // A probe of a hung disk must not keep the process.
    runtime.shutdown_background();
    let failed = probes.iter().filter(|probe| probe.result.is_err()).count();
    print(|to| {
        writeln!(to, "\nprobes:")?;
        for Probe { what, result } in &probes {
            match result {
                Ok(found) => writeln!(to, "  ok      {what}: {found}")?,
                Err(error) => writeln!(to, "  FAILED  {what}: {error}")?,
            }
        }
        Ok(())
    })?;
    if failed == 0 {
        return Ok(());
    }
    Err(VerbError::Runtime(format!("{failed} of {} probes failed", probes.len())))
}
