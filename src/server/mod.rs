//! What all HTTP servers share: listeners, bounded connections, slow clients, request ids, replies,
//! problems.

mod connection;
mod listener;
mod problem;
mod reply;
mod watched;

pub use connection::{HttpServer, Limits};
pub use listener::Listener;
pub use problem::Problem;
pub use reply::{Reply, json_reply, reply};
