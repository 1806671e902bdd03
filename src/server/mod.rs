//! What every door shares: listening, bounded connections, slow clients, request ids, problems.

mod connection;
mod listener;
mod problem;
mod watched;

pub use connection::{HttpServer, Limits, Reply};
pub use listener::Listener;
pub use problem::Problem;
