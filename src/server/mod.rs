//! What all HTTP servers share: listeners, bounded connections, slow clients, request ids, replies,
//! problems, and what no service has to check: framings, hosts, origins, bodies that are left unread.

mod automatic;
mod body;
mod certificate;
mod client_certificate;
mod connection;
mod discard;
mod door;
mod heads;
mod listener;
mod peer;
mod problem;
mod query_taker;
mod reply;
mod returned;
mod slots;
mod slug;
mod taken_query;
mod tls;
mod watched;

pub use body::RequestBody;
pub use certificate::{Certificates, CurrentTls};
pub use client_certificate::PeerNames;
pub use connection::{HttpServer, Limits};
pub use listener::{Listener, SocketAccess};
pub use peer::{ClientAddress, PeerProcess};
pub use problem::Problem;
pub use reply::{Reply, ReplyBody, json_reply, reply};
pub use slots::{ConnectionSlots, ConnectionUsage, PeerShare};
pub use slug::Slug;
pub use taken_query::{MAX_QUERY, TakenQuery};
