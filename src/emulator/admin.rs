//! `/_emulator/*`: for the user of the emulator. These calls are never counted or refused.

use http::header::ALLOW;
use http::{HeaderValue, Method, Response, StatusCode};
use serde::Serialize;

use super::faults::Fault;
use super::issued_key::NewKey;
use super::reply::{self, Body};
use super::state::EmulatorInner;

/// What these paths begin with.
pub(super) const PREFIX: &str = "/_emulator";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AdminProblem<'a> {
    code: &'a str,
    message: String,
}

#[derive(Serialize)]
struct Done {
    done: bool,
}

pub(super) fn answer(
    shared: &EmulatorInner,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Response<Body> {
    let path = path.strip_prefix(PREFIX).unwrap_or(path);
    match (path, method.as_str()) {
        ("/report", "GET") => reply::json(StatusCode::OK, &shared.report()),
        ("/messages", "GET") => reply::messages(shared.messages()),
        ("/faults", "POST") => match Fault::parse_list(body) {
            Ok(faults) => {
                shared.set_faults(faults);
                done()
            }
            Err(error) => problem(StatusCode::BAD_REQUEST, "InvalidFaults", error.to_string()),
        },
        ("/reset", "POST") => {
            shared.reset();
            done()
        }
        ("/blocked", "DELETE") => {
            shared.lift_blocks();
            done()
        }
        ("/keys", "GET") => reply::json(StatusCode::OK, &shared.keys.views(shared.wall())),
        ("/keys", "POST") => match NewKey::read(body, shared.wall()) {
            Ok(key) => {
                shared.keys.add(key);
                done()
            }
            Err(error) => problem(StatusCode::BAD_REQUEST, "InvalidKey", error),
        },
        (path, "DELETE") if path.starts_with("/keys/") => {
            let id = path.trim_start_matches("/keys/");
            if shared.keys.revoke(id) {
                return done();
            }
            problem(StatusCode::NOT_FOUND, "NotFound", "There is no key of this id.".to_owned())
        }
        ("/keys", _) => wrong_method("GET, POST"),
        (path, _) if path.starts_with("/keys/") => wrong_method("DELETE"),
        ("/report" | "/messages", _) => wrong_method("GET"),
        ("/faults" | "/reset", _) => wrong_method("POST"),
        ("/blocked", _) => wrong_method("DELETE"),
        _ => not_found(),
    }
}

/// For any path that nothing is at.
pub(super) fn not_found() -> Response<Body> {
    let paths = "There is /, and below /_emulator/ there are report, messages, keys, faults, reset and \
                 blocked.";
    problem(StatusCode::NOT_FOUND, "NotFound", paths.to_owned())
}

fn wrong_method(allow: &'static str) -> Response<Body> {
    let message = format!("Only {allow} goes here.");
    let mut reply = problem(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message);
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    reply
}

fn problem(status: StatusCode, code: &str, message: String) -> Response<Body> {
    reply::json(status, &AdminProblem { code, message })
}

fn done() -> Response<Body> {
    reply::json(StatusCode::OK, &Done { done: true })
}
