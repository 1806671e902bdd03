//! Keys as they come from real folders and real HTTP servers. How they are kept fresh is tested
//! beside the code, in paused time.

mod files;
mod metadata;
mod rotation;
pub(crate) mod server;
pub(crate) mod sources;
mod uri;
