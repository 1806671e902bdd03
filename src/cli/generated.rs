//! `tollgate completions` and `tollgate man`: what the description of the command line itself yields.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::run::{VerbError, print};

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tollgate completions bash > /usr/share/bash-completion/completions/tollgate\n  \
    tollgate completions zsh > /usr/local/share/zsh/site-functions/_tollgate\n  \
    tollgate completions fish > ~/.config/fish/completions/tollgate.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page, or write one for each verb
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tollgate man | man -l -\n  tollgate man --out /usr/local/share/man/man1"
)]
pub(super) struct ManArgs {
    /// An existing folder for tollgate.1 and a page for each verb
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), VerbError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "tollgate", &mut script);
    print(|to| to.write_all(&script))
}

pub(super) fn man(args: &ManArgs) -> Result<(), VerbError> {
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command()).render(&mut page)?;
        return print(|to| to.write_all(&page));
    };
    let written = clap_mangen::generate_to(command(), folder);
    written.map_err(|error| VerbError::Runtime(format!("{}: {error}", folder.display())))
}

/// Without the version's commit: a page is of a version.
fn command() -> Command {
    Cli::command().version(env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_page_for_each_verb() {
        let folder = tempfile::tempdir().unwrap();
        assert!(man(&ManArgs { out: Some(folder.path().to_owned()) }).is_ok());
        let page = |verb: &str| {
            let path = folder.path().join(format!("tollgate{verb}.1"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{verb}: {error}"))
        };
        assert!(page("").contains("tollgate\\-serve(1)"), "{}", page(""));
        for verb in command().get_subcommands() {
            let page = page(&format!("-{}", verb.get_name()));
            assert!(page.contains(".SH SYNOPSIS"), "{page}");
        }
        let nowhere = ManArgs { out: Some(folder.path().join("none")) };
        assert!(man(&nowhere).is_err());
    }

    #[test]
    fn each_shell_completes_each_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "tollgate", &mut script);
            let script = String::from_utf8(script).unwrap();
            for verb in command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell} {}", verb.get_name());
            }
        }
    }
}
