//! The provider over HTTP.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, HOST, HeaderValue, USER_AGENT};
use http::{HeaderName, Method, Request};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::clock::{Correction, ProviderClock, TimeCheck};
use super::connect::{Connector, TlsError};
use super::exchange::{Exchanged, Path, RawAnswer, exchange};
use super::pool::{Pool, Slot};
use super::trouble::Trouble;
use super::tunnel::unused_variable;
use super::{API_VERSION, SendGate, SendMessage, Upstream};
use crate::action::ActionCall;
use crate::answer::{
    AccessDenied, Answer, AnswerBody, Codes, NextSignature, TransportError, Verdict,
};
use crate::ceiling::{Permit, Read};
use crate::config::{self, SignatureVersion};
use crate::deadline;
use crate::keys::{Key, Keys};
use crate::log_limiter::LogLimiter;
use crate::message::{Message, MessageId, PayloadEncoding, PayloadForm};
use crate::signing::{self, Credentials, Signed, Stamp};

/// The provider over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct HttpUpstream {
    shared: Arc<UpstreamInner>,
}

struct UpstreamInner {
    authority: String,
    host: HeaderValue,
    path: Path,
    signature: SignatureVersion,
    /// How the bodies of a topic travel.
    encodings: config::Upstream,
    call_timeout: Duration,
    /// One an egress address, in the configuration's order.
    pools: Vec<Pool>,
    keys: Keys,
    /// What the configuration says of codes.
    codes: Codes,
    clock: Mutex<ProviderClock>,
    /// At most one line a second about a `Date` that is not believed.
    clock_lines: LogLimiter,
    trouble: Trouble,
    /// Unix milliseconds of the last answer; 0: none yet.
    last_answer_ms: AtomicI64,
}

/// What is known of the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// The provider's clock minus ours.
    pub clock_skew: SignedDuration,
    /// When the last answer came.
    pub last_answer: Option<Timestamp>,
    /// Why the last connection did not open; `None`: a call was answered since.
    pub trouble: Option<TransportError>,
}

impl HttpUpstream {
    /// Prepares connections; none is opened before it is needed.
    pub fn new(config: &config::Upstream, codes: Codes, keys: Keys) -> Result<Self, TlsError> {
        if let Some(variable) = unused_variable(config, |name| std::env::var_os(name)) {
            tracing::warn!(
                variable,
                "a proxy is set in the environment, and calls to the provider do not use it: to \
                 send them through a proxy, set upstream.proxy"
            );
        }
        let connector = Arc::new(Connector::new(config)?);
        let pool = |source: Option<IpAddr>| {
            Pool::new(Arc::clone(&connector), source, config.idle_timeout, config.max_connections)
        };
        let pools = if config.egress_addresses.is_empty() {
            vec![pool(None)]
        } else {
            config.egress_addresses.iter().map(|source| pool(Some(*source))).collect()
        };
        let authority = config.endpoint.authority();
        let host = HeaderValue::from_str(&authority)
            .map_err(|_| TlsError::Host(config.endpoint.host.clone()))?;
        let shared = Arc::new(UpstreamInner {
            host,
            authority,
            path: if config.proxy.is_some() { Path::Proxied } else { Path::Direct },
            signature: config.signature,
            encodings: config.clone(),
            call_timeout: config.call_timeout,
            pools,
            keys,
            codes,
            clock: Mutex::default(),
            clock_lines: LogLimiter::new(1),
            trouble: Trouble::new(),
            last_answer_ms: AtomicI64::new(0),
        });
        tokio::spawn(reap(Arc::downgrade(&shared), config.idle_timeout));
        Ok(Self { shared })
    }

    /// What is known of the provider.
    pub fn status(&self) -> UpstreamStatus {
        let last = self.shared.last_answer_ms.load(Ordering::Relaxed);
        UpstreamStatus {
            clock_skew: self.shared.clock().skew(),
            trouble: self.shared.trouble.now(),
            last_answer: (last > 0).then(|| Timestamp::from_millisecond(last).ok()).flatten(),
        }
    }
}

/// Closes connections before the provider does, also when there is no traffic.
async fn reap(shared: std::sync::Weak<UpstreamInner>, idle_timeout: Duration) {
    let mut ticks = interval(idle_timeout / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        shared.pools.iter().for_each(Pool::reap);
    }
}

/// No answer to a message comes near it.
const MAX_ANSWER: usize = 64 << 10;
/// The most bytes of an answer of another operation: some list what an instance has.
pub const MAX_ACTION_ANSWER: usize = 256 << 10;

/// What is sent.
#[derive(Clone, Copy)]
enum Outgoing<'a> {
    Message(&'a Message),
    Action(&'a ActionCall),
}

impl Outgoing<'_> {
    fn id(self) -> MessageId {
        match self {
            Self::Message(message) => message.id,
            Self::Action(call) => call.id,
        }
    }

    const fn max_answer(self) -> usize {
        match self {
            Self::Message(_) => MAX_ANSWER,
            Self::Action(_) => MAX_ACTION_ANSWER,
        }
    }

    /// What an answer means for it. Only a message has a `MsgId`.
    fn verdict(self, answer: &Answer) -> Verdict {
        match (self, answer.http()) {
            (Self::Action(_), Some(http)) if http.is_2xx() && http.body == AnswerBody::Object => {
                Verdict::Delivered
            }
            _ => answer.verdict(),
        }
    }
}

impl Upstream for HttpUpstream {
    async fn send(&self, message: &Message, permit: Permit, gate: &SendGate) -> Answer {
        self.shared.call(Outgoing::Message(message), permit, gate).await.answer
    }

    async fn renew_key(&self) -> bool {
        self.shared.keys.renew().await
    }
}

impl HttpUpstream {
    /// How long a call takes at most.
    pub fn call_timeout(&self) -> Duration {
        self.shared.call_timeout
    }

    /// Makes one call of another operation, and returns its answer as it came. Otherwise as
    /// [`Upstream::send`].
    pub async fn pass(&self, call: &ActionCall, permit: Permit, gate: &SendGate) -> RawAnswer {
        self.shared.call(Outgoing::Action(call), permit, gate).await
    }
}

/// Gives back the permit of a call whose connection is closed, or was never open.
fn give_back(permit: Permit, lost: TransportError, read: Read) {
    match lost {
        TransportError::Connect
        | TransportError::Refused
        | TransportError::Reset
        | TransportError::Unreachable
        | TransportError::ConnectTimeout
        | TransportError::Unwritten
        | TransportError::Closed => permit.lost(read),
        TransportError::Resolve
        | TransportError::ResolverSilent
        | TransportError::NoConnection
        | TransportError::SourceAddress
        | TransportError::ProxyUnreachable
        | TransportError::ProxyPassword
        | TransportError::ProxyRefused
        | TransportError::Tls
        | TransportError::CertificateExpired
        | TransportError::CertificateNotYetValid
        | TransportError::CertificateName
        | TransportError::CertificateIssuer
        | TransportError::TlsVersion
        | TransportError::NotTls
        | TransportError::NoKey
        | TransportError::TooLate
        | TransportError::NotText => permit.unsent(),
        TransportError::Garbled if read == Read::Over => permit.answered(),
        TransportError::Timeout | TransportError::Garbled => drop(permit),
    }
}

/// Keeps the connection of a call without an answer open, as long as an answer would tell more than
/// other calls do: that the provider, or the way to it, goes on.
fn listen(exchange: impl Future<Output = Exchanged> + Send + 'static, permit: Permit, place: Slot) {
    let Some(mut pending) = permit.unanswered() else { return };
    tokio::spawn(async move {
        let _place = place;
        tokio::select! {
            (_, ended) = exchange => match ended {
                Ok(raw) if !raw.answer.is_gateway_timeout() => pending.answered(),
                Err((_, Read::Over)) => pending.over(),
                Ok(_) | Err(_) => {}
            },
            () = pending.tells_nothing() => {}
        }
    });
}

impl UpstreamInner {
    async fn call(&self, call: Outgoing<'_>, mut permit: Permit, gate: &SendGate) -> RawAnswer {
        let pool = &self.pools[permit.egress()];
        let deadline = Instant::now() + self.call_timeout;
        let lease = tokio::select! {
            lease = pool.lease(deadline.min(gate.closes())) => lease,
            () = gate.stopped() => Err(TransportError::TooLate),
        };
        let (connection, slot) = match lease {
            Ok(leased) => leased,
            Err(lost) => {
                self.trouble.met(lost, &self.authority);
                give_back(permit, lost, Read::Never);
                return if gate.is_closed() { TransportError::TooLate } else { lost }.into();
            }
        };
        let (key, request) = match self.prepare(call, &permit, gate) {
            Ok(prepared) => prepared,
            Err(lost) => {
                permit.unsent();
                pool.put_back(connection);
                return lost.into();
            }
        };
        permit.goes_to(connection.to());
        // On the heap: it may outlive this call.
        let mut exchange = Box::pin(exchange(connection, request, self.path, call.max_answer()));
        let Ok((connection, ended)) = deadline::by(deadline, &mut exchange).await else {
            // Its place is free for another call.
            drop(slot);
            if let Some(place) = pool.listener() {
                listen(exchange, permit, place);
            }
            return TransportError::Timeout.into();
        };
        match ended {
            Ok(RawAnswer { answer, body }) => {
                let mut answer = self.codes.rule(answer);
                pool.put_back(connection);
                let verdict = call.verdict(&answer);
                self.learn(call, &mut answer, &verdict, &key);
                match verdict {
                    // A gateway that did not wait for what stands behind it, which may read it yet.
                    _ if answer.is_gateway_timeout() => drop(permit),
                    Verdict::Throttled { .. } => permit.throttled(),
                    _ => permit.answered(),
                }
                RawAnswer { answer, body }
            }
            Err((lost, read)) => {
                // Only then is nothing of the call sent any more.
                connection.close().await;
                give_back(permit, lost, read);
                lost.into()
            }
        }
    }

    /// The request, signed as the last step, and the key that signed it: if it may leave now.
    fn prepare(
        &self,
        call: Outgoing<'_>,
        permit: &Permit,
        gate: &SendGate,
    ) -> Result<(Arc<Key>, Request<Full<Bytes>>), TransportError> {
        let key = self.keys.choose(call.id()).map_err(|_| TransportError::NoKey)?;
        let request = match call {
            Outgoing::Message(message) => self.message_request(message, &key)?,
            Outgoing::Action(call) => self.action_request(call, &key)?,
        };
        if !permit.holds() {
            return Err(TransportError::Unwritten);
        }
        if !gate.leave() {
            return Err(TransportError::TooLate);
        }
        Ok((key, request))
    }

    fn message_request(
        &self,
        message: &Message,
        key: &Key,
    ) -> Result<Request<Full<Bytes>>, TransportError> {
        let encoding = match message.payload.form() {
            PayloadForm::Body => self.encodings.encoding_for(&message.topic),
            PayloadForm::Encoded => PayloadEncoding::Plain,
        };
        let payload = match encoding {
            PayloadEncoding::Base64 => Cow::Owned(STANDARD.encode(message.payload.as_bytes())),
            PayloadEncoding::Plain => {
                let text = std::str::from_utf8(message.payload.as_bytes());
                Cow::Borrowed(text.map_err(|_| TransportError::NotText)?)
            }
        };
        let operation = SendMessage::new(&message.instance, message.topic.as_str(), &payload);
        self.request(&operation.call(&self.authority), key)
    }

    fn action_request(
        &self,
        call: &ActionCall,
        key: &Key,
    ) -> Result<Request<Full<Bytes>>, TransportError> {
        let params = call.parameters.iter().map(|(name, value)| (&**name, &**value));
        let params: Vec<_> = params.collect();
        let call = signing::Call {
            authority: &self.authority,
            action: &call.action,
            version: API_VERSION,
            params: &params,
        };
        self.request(&call, key)
    }

    /// The whole request, signed as the last step. `Unwritten` only where a part of it is no HTTP,
    /// which keys, topics and names of operations, being checked, never are.
    fn request(
        &self,
        call: &signing::Call<'_>,
        key: &Key,
    ) -> Result<Request<Full<Bytes>>, TransportError> {
        let credentials = Credentials {
            id: key.id(),
            secret: key.secret().expose_secret(),
            token: key.token().map(ExposeSecret::expose_secret),
        };
        let signed = signing::sign(self.signature, call, &credentials, &self.stamp());
        assemble(signed, self.host.clone()).ok_or(TransportError::Unwritten)
    }

    fn stamp(&self) -> Stamp {
        let at = self.clock().corrected(Timestamp::now());
        // A nonce is to be used once, and is no secret. The generator of a thread is seeded by the system, and
        // costs no call of it.
        Stamp::new(at, rand::random())
    }

    fn clock(&self) -> MutexGuard<'_, ProviderClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes from an answer what the next call needs to know.
    fn learn(&self, call: Outgoing<'_>, answer: &mut Answer, verdict: &Verdict, key: &Arc<Key>) {
        let now = Timestamp::now();
        self.last_answer_ms.store(now.as_millisecond(), Ordering::Relaxed);
        self.trouble.ended();
        let check = match verdict {
            Verdict::Denied(AccessDenied::Clock) => TimeCheck::Refused,
            Verdict::Delivered | Verdict::Refused => TimeCheck::Passed,
            _ => TimeCheck::Silent,
        };
        let next = match verdict {
            // Another call for the message, with another key, shows which one is at fault. Other operations have one
            // call.
            Verdict::Denied(why @ (AccessDenied::Key | AccessDenied::Permission))
                if matches!(call, Outgoing::Message(_)) =>
            {
                self.keys.refused(call.id(), key, *why)
            }
            // A message that is refused has a key that is not.
            Verdict::Delivered | Verdict::Refused => {
                self.keys.worked(call.id(), key);
                NextSignature::Same
            }
            _ => NextSignature::Same,
        };
        let Answer::Http(http) = answer else { return };
        http.next = next;
        let learnt = self.clock().learn(http.date, now, check);
        match learnt {
            Some(Correction::Made(skew)) => {
                http.next = NextSignature::OtherTime;
                let skew_ms = skew.as_millis();
                tracing::warn!(skew_ms, "the provider refused our time: corrected");
            }
            Some(Correction::TooFar(skew)) => {
                if let Some(suppressed) = self.clock_lines.next() {
                    let skew_s = skew.as_secs();
                    tracing::warn!(
                        skew_s,
                        suppressed,
                        "the provider refused our time, and its Date is too far off to be believed: \
                         not corrected; check this machine's clock"
                    );
                }
            }
            None => {}
        }
    }
}

fn assemble(signed: Signed, host: HeaderValue) -> Option<Request<Full<Bytes>>> {
    let uri = if signed.query.is_empty() { "/".to_owned() } else { format!("/?{}", signed.query) };
    let length = signed.body.len();
    let mut request = Request::new(Full::new(Bytes::from(signed.body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.try_into().ok()?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    // Without it, a gateway may compress the answer, in which no MsgId could be read.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION"))),
    );
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    for (name, value) in signed.headers {
        headers.insert(HeaderName::from_static(name), value.try_into().ok()?);
    }
    Some(request)
}
