//! `tollgate get`: what a running sidecar answers at a path, where there is no other HTTP client.

use std::io::Write;
use std::net::SocketAddr;

use bytes::Bytes;
use http::uri::PathAndQuery;

use super::client::SidecarClient;
use super::run::{VerbError, block_on, print};
use super::status::local;
use crate::config::Flags;

/// The default of listen.telemetry.
const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);

/// Print what a running sidecar answers at a path, such as /readyz?verbose
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate get '/readyz?verbose'\n  \
    tollgate get /metrics\n  \
    tollgate get /messages/01a2082df4757088bbc9b040e1f84a7d --at 127.0.0.1:8080\n\n\
    Asks the telemetry listener: /metrics, /status.json, /livez, /startupz, /readyz. For an image without a \
    shell or curl. Exits with 1 if the status is not 2xx, or if no sidecar answers.")]
pub(super) struct Args {
    /// The path, with a query if there is one
    #[arg(value_parser = path)]
    path: PathAndQuery,
    #[command(flatten)]
    flags: Flags,
    /// Address of a listener, or a name with its port [default: listen.telemetry of the configuration]
    #[arg(long, value_name = "ADDRESS")]
    at: Option<String>,
}

fn path(text: &str) -> Result<PathAndQuery, String> {
    if !text.starts_with('/') {
        return Err("a path begins with /".to_owned());
    }
    text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())
}

pub(super) fn run(args: &Args) -> Result<(), VerbError> {
    let at = match (&args.at, args.flags.load_for_operator()) {
        (Some(at), _) => at.clone(),
        (None, Ok(loaded)) => local(loaded.config.listen.telemetry).to_string(),
        // A sidecar that runs with the configuration before the mistake can say so.
        (None, Err(errors)) => {
            eprintln!("{errors}\nasking {DEFAULT} (--at names another address)");
            DEFAULT.to_string()
        }
    };
    let (status, body) = block_on(fetch(&at, args.path.as_str()))?;
    print(|to| to.write_all(&body))?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(VerbError::Runtime(format!("{at} answers {status}")))
}

async fn fetch(at: &str, path: &str) -> Result<(u16, Bytes), String> {
    let silent =
        |error| format!("no sidecar answers at {at}: {error}; check --at or listen.telemetry");
    let mut sidecar = SidecarClient::at(at).await.map_err(silent)?;
    sidecar.ask("GET", path, String::new()).await.map_err(silent)
}
