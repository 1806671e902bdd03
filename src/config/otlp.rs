//! `[telemetry.otlp]`: where spans go.

use std::path::PathBuf;

use http::Uri;
use http::uri::Authority;

use super::checks::{optional_path, or_empty};
use super::error::ValueError;
use super::parse::Raw;
use super::read::{Reader, share, value};
use super::table::section;
use super::uri::host_and_port;

/// Where a collector takes spans, below its base.
const PATH: &str = "/v1/traces";

section! {
    pub(super) struct OtlpRows [telemetry.otlp] {
        /// The collector that spans are sent to, by OTLP over HTTP with Protobuf: its base, such as
        /// "http://collector:4318", or the whole URL that ends in /v1/traces. Empty: no spans are made
        /// (docs/tracing.md).
        endpoint: Option<String> = "", value(endpoint);

        /// The part of the requests without a traceparent that is sampled. With one, its caller decides.
        sample: f64 = 0.01, share();

        /// A file with authorities (PEM) that may have signed the collector's certificate, besides the bundled
        /// ones and the system's.
        ca_file: Option<PathBuf> = "", value(optional_path);
    }
}

/// `[telemetry.otlp]`
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// The URL that takes spans.
    pub endpoint: String,
    /// The part of the requests without a `traceparent` that is sampled, 0 to 1.
    pub sample: f64,
    /// Authorities of the collector's certificate, besides the bundled ones and the system's.
    pub ca_file: Option<PathBuf>,
}

/// `None` without an endpoint: there are no spans then.
#[expect(clippy::option_option, reason = "a value that is wrong, and one that is not there")]
pub(super) fn otlp(r: &mut Reader<'_>) -> Option<Option<Otlp>> {
    let OtlpRows { endpoint, sample, ca_file } = OtlpRows::read(r)?;
    Some(endpoint.map(|endpoint| Otlp { endpoint, sample, ca_file }))
}

fn endpoint(raw: &Raw) -> Result<Option<String>, ValueError> {
    or_empty(raw, |raw| url(raw.text()?).map(Some))
}

/// The whole URL, of a base or of itself.
fn url(text: &str) -> Result<String, ValueError> {
    let wrong = |problem: &str| {
        let remedy = "write http://host:4318, or https://host:4318 for a collector with TLS";
        ValueError::new(problem, remedy)
    };
    let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("has no scheme, or one other than http and https"));
    }
    let authority = uri.authority().map_or("", Authority::as_str);
    if authority.contains('@') {
        return Err(wrong(
            "has a user or password; set the variable OTEL_EXPORTER_OTLP_HEADERS instead",
        ));
    }
    if text.contains(['?', '#']) {
        return Err(wrong("has a query or fragment"));
    }
    let (_, port) = host_and_port(authority).map_err(wrong)?;
    if port == Some(4317) {
        return Err(wrong("has the port of OTLP over gRPC, and spans are sent over HTTP"));
    }
    let base = text.trim_end_matches('/');
    Ok(if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, whole) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://[::1]", "https://[::1]/v1/traces"),
            ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
            ("https://host/base/", "https://host/base/v1/traces"),
        ] {
            assert_eq!(url(text).unwrap(), whole);
        }
        for text in [
            "collector:4318",
            "grpc://collector:4318",
            "http://",
            "http://user:SECRET@collector:4318",
            "http://collector:4318?token=SECRET",
            "http://collector:4318/#x",
            "http://collector:0",
            "http://col lector",
            // That of gRPC.
            "http://collector:4317",
        ] {
            let error = url(text).unwrap_err();
            assert!(!error.problem.contains("SECRET"), "{text}");
        }
    }
}
