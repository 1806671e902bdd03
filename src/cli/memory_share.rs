//! How many connections, stored messages and idempotency keys the memory of the process carries.

use std::fmt;

use crate::config::Config;
use crate::memory::MemoryPlan;

/// A bound that was lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lowered {
    key: &'static str,
    configured: usize,
    used: usize,
}

/// Bounds that `runtime.memory` does not carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClampedByMemory {
    memory: u64,
    lowered: Vec<Lowered>,
}

/// Lowers the bounds of what is held for each connection, stored message and key to what the memory carries:
/// otherwise callers could get the process killed. `None`: it carries what is configured.
pub(super) fn clamp(config: &mut Config) -> Option<ClampedByMemory> {
    let memory = config.runtime.memory;
    let plan = MemoryPlan::of(memory);
    let mut lowered = Vec::new();
    let mut lower = |key, bound: &mut usize, most: usize| {
        if *bound > most {
            lowered.push(Lowered { key, configured: *bound, used: most });
            *bound = most;
        }
    };
    let connections = if config.tls.is_some() { plan.tls_connections } else { plan.connections };
    lower("publish.max_connections", &mut config.publish.max_connections, connections);
    if let Some(spool) = &config.spool {
        // Of the account's, where it is shared: the spool lowers that of this process.
        let mut messages = spool.max_messages;
        lower("spool.max_messages", &mut messages, plan.messages);
    }
    lower("idempotency.max_keys", &mut config.idempotency.max_keys, plan.keys);
    (!lowered.is_empty()).then_some(ClampedByMemory { memory, lowered })
}

impl fmt::Display for ClampedByMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = bytesize::ByteSize(self.memory);
        write!(f, "the memory ({shown}, runtime.memory) carries ")?;
        for (n, Lowered { key, configured, used }) in self.lowered.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{key} = {used} (configured: {configured})")?;
        }
        f.write_str("; tollgate uses these, so raise the memory limit or lower the keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(memory: &str) -> Config {
        let flags = [
            ("upstream.endpoint", "http://127.0.0.1:1"),
            ("upstream.instance_id", "i"),
            ("runtime.memory", memory),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        crate::config::load(None, [], &flags).unwrap().config
    }

    #[test]
    fn what_the_memory_does_not_carry_is_lowered() {
        let mut ample = config("8GiB");
        assert_eq!(clamp(&mut ample), None);

        let mut small = config("64MiB");
        let text = clamp(&mut small).unwrap().to_string();
        assert!(text.contains("64.0 MiB") && text.contains("(configured: 8192)"), "{text}");
        for key in ["publish.max_connections", "spool.max_messages", "idempotency.max_keys"] {
            assert!(text.contains(key), "{text}");
        }
        let plan = MemoryPlan::of(64 << 20);
        assert_eq!(small.publish.max_connections, plan.connections);
        assert_eq!(small.idempotency.max_keys, plan.keys);

        let mut tls = config("64MiB");
        let (certificate, key, client_ca) = ("/c".into(), "/k".into(), None);
        tls.tls = Some(crate::config::TlsFiles { certificate, key, client_ca });
        assert!(clamp(&mut tls).is_some());
        assert_eq!(tls.publish.max_connections, plan.tls_connections);
        assert!(plan.tls_connections < plan.connections);
    }
}
