//! Keys as they come from real folders and real HTTP servers. How they are kept fresh is tested
//! beside the code, in paused time.

#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for no tests")]

mod files;
mod server;
mod uri;
