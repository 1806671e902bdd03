//! One `SendMessage` call: a ready connection, the current key, the signature as the last step,
//! then the request and its answer.
//!
//! hyper's connection API instead of reqwest: one `send` is one call, nothing is re-sent or
//! redirected behind our back, and it costs a third less CPU.

mod cause;
mod clock;
mod connect;
mod exchange;
mod http;
mod pool;
mod resolve;
mod send_gate;
mod send_message;
mod trouble;
mod tunnel;

use crate::answer::Answer;
use crate::ceiling::Permit;
use crate::message::Message;

pub use self::http::{HttpUpstream, MAX_ACTION_ANSWER, UpstreamStatus};
pub use connect::TlsError;
pub use exchange::RawAnswer;
pub use send_gate::SendGate;
pub use send_message::SendMessage;

/// The revision of the provider's API.
pub const API_VERSION: &str = "2020-04-20";

/// Where calls go. The provider, or a script in a test.
pub trait Upstream: Send + Sync + 'static {
    /// Makes one call. Consumes the permit, so that there is no call without one, and gives it
    /// back according to what became of the call. Nothing is sent after `gate` has closed.
    fn send(
        &self,
        message: &Message,
        permit: Permit,
        gate: &SendGate,
    ) -> impl Future<Output = Answer> + Send;

    /// The provider refused our key with this answer: looks for another. Whether a try with what
    /// is now there makes sense.
    fn renew_key(&self) -> impl Future<Output = bool> + Send;
}
