//! ApsaraMQ for MQTT on this machine: the provider's `SendMessage` for demos and tests.
//!
//! It is an annex: of the rest of this crate it uses `verification` only, which the callers' server uses as
//! well. That shares no code with what signs, so that the sender's mistakes do not meet their like here.
//!
//! The way of a call: `server` reads it, `traffic` counts its arrival against the ceilings,
//! `send_message` has its signature checked (`key_ring`), checks its `parameters`, plays
//! `faults` and takes the message into the `ledger`, and `reply` words the answer.
//! `admin` serves `/_emulator/*`, `mqtt` hands messages to a real broker. `sts` and `metadata` give out
//! temporary keys, whose `policy` holds for `send_message`. `other_operation` answers what is neither.
//!
//! Where the provider's documents are silent or disagree, this is assumed:
//! * calls refused for the account's ceiling count towards it, too;
//! * a call over an address's ceiling has that address blocked at once, until lifted;
//! * an empty parameter is a missing one;
//! * 64 KB of payload are 65,536 characters as sent;
//! * a policy's resource for `SendMessage` is `acs:mq:<region>:<account>:topic/<instance>/<parent topic>`.
//!
//! Calls of the Security Token Service and of the metadata service count towards no ceiling. Any role may be
//! assumed, and of an OIDC token all but its signature is checked.

mod admin;
mod faults;
mod issued_key;
mod key_ring;
mod ledger;
mod lines;
mod metadata;
mod mqtt;
mod operation;
mod options;
mod other_operation;
mod parameters;
mod policy;
mod reply;
mod report;
mod send_message;
mod server;
mod state;
mod sts;
mod traffic;
mod window;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use faults::{FAULT_ACTIONS, Fault, FaultError, Then, parse_duration};
use key_ring::KnownKey;
use mqtt::Broker;
pub use options::{
    DEMO_KEY_ID, DEMO_KEY_SECRET, EmulatorOptions, KeyPair, MetadataAccess, MqttPayload, Over,
};
pub use report::{Accepted, EmulatedSecond, MqttReport, Report};
use state::EmulatorInner;

/// A running emulator. Dropped, it stops.
pub struct Emulator {
    address: SocketAddr,
    shared: Arc<EmulatorInner>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why an emulator did not start.
#[derive(Debug, Error)]
pub enum EmulatorError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The broker's URL is none.
    #[error("{0:?} is not mqtt://host[:port]")]
    Mqtt(String),
    /// The faults to start with cannot be played.
    #[error(transparent)]
    Faults(#[from] FaultError),
}

impl Emulator {
    /// Starts on the current tokio runtime, and panics outside of one.
    pub fn start(options: EmulatorOptions) -> Result<Self, EmulatorError> {
        faults::check(&options.faults)?;
        let refused = |source| EmulatorError::Listen { address: options.listen, source };
        let listener = server::listen(options.listen).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;

        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let broker = match &options.mqtt {
            None => None,
            Some(url) => {
                let ends = Broker::new(url, options.mqtt_payload);
                let (broker, flow) = ends.ok_or_else(|| EmulatorError::Mqtt(url.clone()))?;
                tasks.spawn(stop.clone().run_until_cancelled_owned(flow));
                Some(broker)
            }
        };
        let shared = Arc::new(EmulatorInner::new(options, broker));
        tasks.spawn(server::accept(listener, Arc::clone(&shared), stop.clone(), tasks.clone()));
        Ok(Self { address, shared, stop, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Plays these faults instead of the former ones; their time begins now.
    pub fn set_faults(&self, faults: Vec<Fault>) -> Result<(), FaultError> {
        faults::check(&faults)?;
        self.shared.set_faults(faults);
        Ok(())
    }

    /// What happened since the start or the last reset.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// Accepted messages that are still kept, oldest first.
    pub fn messages(&self) -> Vec<Arc<Accepted>> {
        self.shared.messages()
    }

    /// Lets a key sign from now on, for as long as it lives; another one of its id no more.
    pub fn add_key(&self, key: KeyPair, life: Option<Duration>) {
        let expires = life.and_then(|life| self.shared.wall().checked_add(life).ok());
        self.shared.keys.add(KnownKey::lasting(key, expires));
    }

    /// Lets a key of this id sign no more. Whether there was one.
    pub fn revoke_key(&self, id: &str) -> bool {
        self.shared.keys.revoke(id)
    }

    /// Lets blocked addresses in again, and forgets nothing else.
    pub fn lift_blocks(&self) {
        self.shared.lift_blocks();
    }

    /// Forgets all: counts, messages, nonces, blocks, faults.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Closes all connections and waits until nothing of it runs any more.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
