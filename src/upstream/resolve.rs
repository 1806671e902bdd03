//! The addresses behind the endpoint's name, which may change at any time.
//!
//! Addresses that are known are used at once. When they are older than `upstream.dns_ttl`, one lookup
//! at a time asks for others in the background: a resolver that is silent, fails or knows no address
//! stops no call, and what was known stays. Only while no address is known does a connection wait, and
//! all that wait share one lookup.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::log_limiter::LogLimiter;

/// A lookup ends after this: longer than a resolver takes whose first server is dead.
const LOOKUP: Duration = Duration::from_secs(10);
/// After a failed lookup the next waits this long, then twice as long, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What a lookup comes back with.
type LookupResult = io::Result<Vec<SocketAddr>>;
/// Asks for the addresses of the name.
type Lookup = dyn Fn() -> Pin<Box<dyn Future<Output = LookupResult> + Send>> + Send + Sync;

/// The addresses behind a name. Cheap to clone.
#[derive(Clone)]
pub(super) struct Resolver {
    shared: Arc<ResolverInner>,
}

struct ResolverInner {
    name: String,
    ttl: Duration,
    lookup: Box<Lookup>,
    state: Mutex<ResolverState>,
    /// At most one line a second about lookups that fail.
    lines: LogLimiter,
}

#[derive(Default)]
struct ResolverState {
    addresses: Vec<SocketAddr>,
    /// When the next lookup may begin, while addresses are known.
    due: Option<Instant>,
    /// Lookups that failed since one did not.
    failed: u32,
    /// The lookup that is under way.
    lookup: Option<JoinHandle<()>>,
    /// Connections that wait for it: no address is known.
    waiting: Vec<oneshot::Sender<LookupResult>>,
}

impl Resolver {
    /// Asks the system.
    pub(super) fn system(host: &str, port: u16, ttl: Duration) -> Self {
        let of = host.to_owned();
        Self::new(host, ttl, move || {
            let of = of.clone();
            Box::pin(async move { Ok(lookup_host((&*of, port)).await?.collect()) })
        })
    }

    pub(super) fn new(
        name: &str,
        ttl: Duration,
        lookup: impl Fn() -> Pin<Box<dyn Future<Output = LookupResult> + Send>> + Send + Sync + 'static,
    ) -> Self {
        let (name, lookup) = (name.to_owned(), Box::new(lookup));
        let (state, lines) = (Mutex::default(), LogLimiter::new(1));
        Self { shared: Arc::new(ResolverInner { name, ttl, lookup, state, lines }) }
    }

    /// The addresses, not always the same one first. Waits only while none is known; the caller bounds
    /// that.
    pub(super) async fn addresses(&self) -> LookupResult {
        let found = {
            let mut state = self.shared.state();
            let is_known = !state.addresses.is_empty();
            let is_due = state.due.is_none_or(|due| due <= Instant::now());
            let idle = state.lookup.as_ref().is_none_or(JoinHandle::is_finished);
            if idle && (is_due || !is_known) {
                state.lookup = Some(tokio::spawn(look_up(Arc::clone(&self.shared))));
            }
            if is_known {
                state.addresses.rotate_left(1);
                return Ok(state.addresses.clone());
            }
            let (to, found) = oneshot::channel();
            // Connections that gave up leave no trace.
            state.waiting.retain(|waiting| !waiting.is_closed());
            state.waiting.push(to);
            found
        };
        // The lookup ends without an answer only with the runtime.
        found.await.unwrap_or_else(|_| Err(io::Error::other("the lookup was stopped")))
    }
}

impl ResolverInner {
    fn state(&self) -> MutexGuard<'_, ResolverState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lookup has ended. Returns the connections that wait for it.
    fn ended(&self, found: &LookupResult) -> Vec<oneshot::Sender<LookupResult>> {
        let mut state = self.state();
        let pause = if let Ok(addresses) = found {
            state.addresses.clone_from(addresses);
            state.failed = 0;
            self.ttl
        } else {
            state.failed = state.failed.saturating_add(1);
            // At most 2^6 s, which is over the longest pause.
            let times = 1 << (state.failed - 1).min(6);
            FIRST_PAUSE.saturating_mul(times).min(LONGEST_PAUSE)
        };
        state.due = Some(Instant::now() + pause);
        state.lookup = None;
        std::mem::take(&mut state.waiting)
    }
}

/// One lookup, for all that wait and all that come later.
async fn look_up(shared: Arc<ResolverInner>) {
    let found = match timeout(LOOKUP, (shared.lookup)()).await {
        Ok(Ok(addresses)) if addresses.is_empty() => {
            Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
        }
        Ok(found) => found,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer")),
    };
    if let Err(error) = &found
        && let Some(suppressed) = shared.lines.next()
    {
        tracing::warn!(host = shared.name, %error, suppressed, "name not resolved");
    }
    for to in shared.ended(&found) {
        let found = match &found {
            Ok(addresses) => Ok(addresses.clone()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        // A connection that gave up needs no answer.
        drop(to.send(found));
    }
}

#[cfg(test)]
mod tests;
