//! The process's limit of open files, and how many connections it carries.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// For the listeners of telemetry and control (64 connections each), so that probes and operators
/// always get one; and for the spool, the ledger, key files, Redis and the runtime.
const RESERVED: u64 = 2 * 64 + 64;
/// Fewer carry nothing: then the limit is too low for any setting.
const FEWEST: u64 = 16;

/// Connections that the limit of open files does not carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clamped {
    /// The limit of open files.
    pub(super) limit: u64,
    /// `publish.max_connections`: configured, and what is used.
    pub(super) publish: (usize, usize),
    /// `upstream.max_connections`: configured, and what is used.
    pub(super) upstream: (usize, usize),
}

/// Raises the soft limit to the hard one: each waiting caller holds a connection.
pub(super) fn raise() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Lowers the bounds of connections to what the hard limit carries beside everything else: otherwise
/// callers could take the last descriptor from the provider, the spool and the probes. `None`: it
/// carries what is configured.
pub(super) fn clamp(config: &mut Config) -> Option<Clamped> {
    clamp_to(config, getrlimit(Resource::Nofile).maximum?)
}

fn clamp_to(config: &mut Config, limit: u64) -> Option<Clamped> {
    let available = limit.saturating_sub(RESERVED).max(2 * FEWEST);
    let addresses = config.upstream.egress_addresses.len().max(1) as u64;
    // As many more wait for late answers.
    let each = 2 * addresses;
    let (publish, upstream) = (config.publish.max_connections, config.upstream.max_connections);
    let wanted = (upstream as u64).saturating_mul(each);
    let to_upstream = wanted.min((available / 2).max(available.saturating_sub(publish as u64)));
    let fits_upstream = usize::try_from(to_upstream / each).unwrap_or(usize::MAX).max(1);
    let fits_publish = usize::try_from(available - to_upstream).unwrap_or(usize::MAX);
    config.upstream.max_connections = upstream.min(fits_upstream);
    config.publish.max_connections = publish.min(fits_publish);
    let clamped = Clamped {
        limit,
        publish: (publish, config.publish.max_connections),
        upstream: (upstream, config.upstream.max_connections),
    };
    let is_lower = |(configured, used): (usize, usize)| used < configured;
    (is_lower(clamped.publish) || is_lower(clamped.upstream)).then_some(clamped)
}

impl std::fmt::Display for Clamped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the limit of open files ({}) carries {} connections of callers (publish.max_connections = {}) \
             and {} of each egress address (upstream.max_connections = {}); tollgate uses these, so raise \
             the limit (LimitNOFILE, or the container runtime's default) or lower the keys",
            self.limit, self.publish.1, self.publish.0, self.upstream.1, self.upstream.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(publish: usize, upstream: usize, addresses: usize) -> Config {
        let egress: Vec<_> = (1..=addresses).map(|n| format!("\"10.0.0.{n}\"")).collect();
        let flags = [
            ("upstream.endpoint", "http://127.0.0.1:1".to_owned()),
            ("upstream.instance_id", "i".to_owned()),
            ("publish.max_connections", publish.to_string()),
            ("upstream.max_connections", upstream.to_string()),
            ("upstream.egress_addresses", format!("[{}]", egress.join(", "))),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value));
        crate::config::load(None, [], &flags).unwrap().config
    }

    #[test]
    fn what_fits_stays() {
        for (publish, upstream, addresses, limit) in [
            (8_192, 256, 0, 1 << 20),
            (320, 256, 0, 1_024),
            (1, 1, 8, 300),
            (8_192, 256, 4, 10_432),
        ] {
            let mut config = config(publish, upstream, addresses);
            assert_eq!(
                clamp_to(&mut config, limit),
                None,
                "{publish} {upstream} {addresses} {limit}"
            );
            assert_eq!(config.publish.max_connections, publish);
            assert_eq!(config.upstream.max_connections, upstream);
        }
    }

    /// Whatever is configured: all together stay below the limit, and nothing gets no connection.
    #[test]
    fn the_rest_is_shared() {
        for limit in [64, 256, 1_000, 1_024, 4_096] {
            for publish in [1, 100, 8_192, 65_536] {
                for (upstream, addresses) in [(1, 0), (256, 0), (256, 4), (65_536, 16)] {
                    let mut config = config(publish, upstream, addresses);
                    clamp_to(&mut config, limit);
                    let publish = config.publish.max_connections as u64;
                    let upstream = config.upstream.max_connections as u64;
                    assert!(publish > 0 && upstream > 0);
                    let used = publish + upstream * 2 * addresses.max(1) as u64;
                    assert!(used <= limit.saturating_sub(RESERVED).max(2 * FEWEST) + 32, "{used}");
                }
            }
        }
        let mut all = config(8_192, 256, 0);
        let clamped = clamp_to(&mut all, 1_024).unwrap();
        assert_eq!((clamped.publish, clamped.upstream), ((8_192, 416), (256, 208)));
    }
}
