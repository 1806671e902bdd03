//! What may change while running.

use super::{Ceilings, Config, Loaded};

/// Keys, or sections, that are taken up without a restart.
const LIVE: [&str; 14] = [
    "ceilings.account",
    "ceilings.egress_ip",
    "ceilings.retry_share",
    "ceilings.allow_above_published",
    "billing.currency",
    "billing.price_per_million",
    "billing.plan_tps",
    "topics.",
    "publish.wait",
    "publish.max_payload",
    "publish.body_timeout",
    "upstream.instance_id",
    "upstream.instances",
    "telemetry.level",
];

impl Loaded {
    /// This configuration with what `newer` says of the keys that may change while running; and
    /// the keys whose change waits for a restart.
    #[must_use]
    pub fn reloaded(&self, newer: &Self) -> (Config, Vec<String>) {
        let mut config = self.config.clone();
        let new = newer.config.clone();
        let unanswered = config.ceilings.unanswered;
        config.ceilings = Ceilings { unanswered, ..new.ceilings };
        config.topics = new.topics;
        config.billing.currency = new.billing.currency;
        config.billing.plan_tps = new.billing.plan_tps;
        // Tiers and budgets begin with what the ledger has, which is read at start.
        if !config.billing.prices.is_tiered() && !new.billing.prices.is_tiered() {
            config.billing.prices = new.billing.prices;
        }
        config.publish.wait = new.publish.wait;
        config.publish.max_payload = new.publish.max_payload;
        config.publish.body_timeout = new.publish.body_timeout;
        config.upstream.instance_id = new.upstream.instance_id;
        config.upstream.instances = new.upstream.instances;
        config.telemetry.level = new.telemetry.level;

        let value = |loaded: &Self, key: &str| {
            loaded.settings.iter().find(|s| s.key == key).map(|s| s.value.clone())
        };
        let live = |key: &str| LIVE.iter().any(|prefix| key.starts_with(prefix));
        let waiting = newer
            .settings
            .iter()
            .filter(|s| !live(&s.key) && value(self, &s.key).as_ref() != Some(&s.value))
            .map(|s| s.key.clone())
            .collect();
        (config, waiting)
    }
}
