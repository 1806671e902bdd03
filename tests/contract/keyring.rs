//! `tollgate keyring` against the emulator's token service: who gets keys, which, and who gets none.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tollgate::config::{
    CallerProof, Endpoint, Issuer, KeySource, KeyUri, Keyring, KeyringCaller, RoleSession,
};
use tollgate::emulator::{DEMO_KEY_ID, DEMO_KEY_SECRET, Emulator, EmulatorOptions, Fault, Then};
use tollgate::keyring::RunningKeyring;
use tollgate::keys::{Key, Keys, Source, source_of};

use crate::keys::server::{Server, reply};
use crate::support::authority::certify;
use crate::support::http::{Answer, BOUND, parse, raw};
use crate::support::ports::refusing;
use crate::support::secrets::Searched as _;
use crate::support::until;

const ISSUER: &str = "https://kubernetes.default.svc";
const SUBJECT: &str = "system:serviceaccount:shop:orders";
const SHARED: &str = "hush-shared-token-of-the-batch-job";

/// An issuer of tokens, with one key.
struct TokenIssuer {
    pair: EcdsaKeyPair,
    id: String,
}

impl TokenIssuer {
    fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random);
        Self { pair: pair.unwrap(), id: id.to_owned() }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        json!({"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":self.id,"x":x,"y":y})
    }

    fn set(&self) -> String {
        json!({ "keys": [self.jwk()] }).to_string()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    fn header(&self) -> Value {
        json!({"alg":"ES256","typ":"JWT","kid":self.id})
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims();
        change(&mut claims);
        self.sign(&self.header(), &claims)
    }
}

fn claims() -> Value {
    let now = Timestamp::now().as_second();
    json!({"iss":ISSUER,"sub":SUBJECT,"aud":["tollgate"],"iat":now,"nbf":now,"exp":now + 3_600})
}

/// A keyring over TLS, its issuer, and the emulator behind it.
struct Stand {
    emulator: Emulator,
    issuer: TokenIssuer,
    keyring: RunningKeyring,
    folder: TempDir,
}

fn caller(name: &str, proof: CallerProof) -> KeyringCaller {
    let (instances, topics) = (Vec::new(), Vec::new());
    KeyringCaller { name: name.to_owned(), proof, instances, topics, role_arn: None, policy: None }
}

/// On a free port, without anything.
fn config() -> Keyring {
    Keyring {
        listen: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        sts: Endpoint { tls: false, host: "127.0.0.1".to_owned(), port: 1 },
        session: RoleSession {
            role_arn: "acs:ram::1000000000000001:role/tollgate".to_owned(),
            name: "keyring".to_owned(),
            duration: Duration::from_hours(1),
            policy: None,
            external_id: None,
        },
        audience: "tollgate".to_owned(),
        issuers: Vec::new(),
        callers: Vec::new(),
        max_callers: 100,
        requests_per_second: 1_000,
        max_connections: 256,
    }
}

fn of(issuer: &str, subject: &str) -> CallerProof {
    CallerProof::ServiceAccount { issuer: issuer.to_owned(), subject: subject.to_owned() }
}

fn emulator(change: impl FnOnce(&mut EmulatorOptions)) -> Emulator {
    let mut options =
        EmulatorOptions { listen: "127.0.0.1:0".parse().unwrap(), ..EmulatorOptions::default() };
    change(&mut options);
    Emulator::start(options).unwrap()
}

fn write_certificate(folder: &Path) {
    let (certificate, key) = certify(folder, &["localhost"]);
    std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
}

impl Stand {
    async fn start() -> Self {
        Self::with(|_| (), |_| ()).await
    }

    async fn with(
        emulated: impl FnOnce(&mut EmulatorOptions),
        change: impl FnOnce(&mut Keyring),
    ) -> Self {
        let emulator = emulator(emulated);
        let issuer = TokenIssuer::new("k1");
        let jwks = Server::text(200, issuer.set()).await;
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        write_certificate(folder.path());
        std::fs::write(path("shared"), format!("{SHARED}\n")).unwrap();
        let orders = KeyringCaller {
            instances: vec!["post-cn-test".to_owned()],
            topics: vec!["Alarm".to_owned()],
            ..caller("orders", of(ISSUER, "system:serviceaccount:shop:*"))
        };
        let (host, port) = (emulator.address().ip().to_string(), emulator.address().port());
        let mut config = Keyring {
            tls: Some((path("tls.crt"), path("tls.key"))),
            sts: Endpoint { tls: false, host, port },
            issuers: vec![Issuer {
                issuer: ISSUER.to_owned(),
                jwks: format!("http://{}/openid/v1/jwks", jwks.address),
                ca_file: None,
                token_file: None,
            }],
            callers: vec![orders, caller("batch", CallerProof::TokenFile(path("shared")))],
            ..config()
        };
        change(&mut config);
        let base = Key::new(DEMO_KEY_ID, DEMO_KEY_SECRET.into(), None, None).unwrap();
        let keyring = RunningKeyring::start(&config, Keys::fixed(base)).await.unwrap();
        let stand = Self { emulator, issuer, keyring, folder };
        until("it is ready", async || stand.get("/readyz", &[]).await.status == 200).await;
        stand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        get(self.keyring.address(), &self.path("ca.pem"), target, headers).await.unwrap()
    }

    async fn ask(&self, token: &str) -> Answer {
        self.get("/credentials", &[("authorization", &format!("Bearer {token}"))]).await
    }

    fn source(&self) -> KeySource {
        KeySource::Uri(KeyUri {
            uri: format!("https://localhost:{}/credentials", self.keyring.address().port()),
            token_file: Some(self.path("token")),
            ca_file: Some(self.path("ca.pem")),
        })
    }
}

/// One request over TLS; an error where there is none to be had.
async fn get(
    address: SocketAddr,
    ca: &Path,
    target: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let mut request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        stream.write_all(format!("{request}\r\n").as_bytes()).await?;
        let mut bytes = Vec::new();
        // The server may close without a farewell.
        drop(stream.read_to_end(&mut bytes).await);
        parse(&bytes).ok_or_else(|| std::io::Error::other("no answer"))
    };
    timeout(BOUND, exchange).await.expect("an answer in time")
}

#[tokio::test]
async fn a_sidecar_gets_a_key_that_may_only_publish_what_its_caller_may() {
    let stand = Stand::start().await;
    std::fs::write(stand.path("token"), stand.issuer.token(|_| ())).unwrap();
    let key = source_of(&stand.source()).unwrap().load().await.unwrap();
    assert!(key.id().starts_with("STS.") && key.token().is_some());
    let left = key.expires().unwrap().duration_since(Timestamp::now()).as_secs();
    assert!((3_500..=3_600).contains(&left), "{left}");

    let address = stand.emulator.address().to_string();
    let keys = crate::support::http::get(&address, "/_emulator/keys").await.json();
    let issued = keys.as_array().unwrap().iter().find(|one| one["id"] == key.id()).unwrap();
    let statement = &issued["policy"]["Statement"][0];
    assert_eq!(statement["Action"], json!(["mq:SendMessage"]));
    assert_eq!(statement["Resource"], json!(["acs:mq:*:*:topic/post-cn-test/Alarm"]));
    assert_eq!(issued["role"]["session_name"], "orders", "as the provider's audit log has it");

    // The other caller has another key, and a policy of its own.
    let shared = stand.ask(SHARED).await;
    assert_eq!(shared.status, 200, "{}", shared.text());
    assert_eq!(shared.header("cache-control"), "no-store");
    assert_ne!(shared.json()["AccessKeyId"], key.id());
    assert_eq!(shared.json()["Code"], "Success");
    for (target, headers) in [
        (format!("/credentials?token={SHARED}"), vec![]),
        (
            "/credentials".to_owned(),
            vec![("authorization", "Basic eDpodXNoLXNoYXJlZC10b2tlbi1vZi10aGUtYmF0Y2gtam9i")],
        ),
    ] {
        let same = stand.get(&target, &headers).await;
        assert_eq!(same.json()["AccessKeyId"], shared.json()["AccessKeyId"], "{target}");
    }
    assert_eq!(stand.emulator.report().issued, 2, "a caller's key is kept");
}

/// As two pods behind one Service: neither needs what the other has handed out.
#[tokio::test]
async fn two_replicas_share_nothing() {
    let mut same = None;
    let stand = Stand::with(|_| (), |config| same = Some(config.clone())).await;
    let base = Key::new(DEMO_KEY_ID, DEMO_KEY_SECRET.into(), None, None).unwrap();
    let second = RunningKeyring::start(&same.unwrap(), Keys::fixed(base)).await.unwrap();
    let ca = stand.path("ca.pem");
    let addresses = [stand.keyring.address(), second.address()];
    until("the second is ready", async || {
        get(second.address(), &ca, "/readyz", &[]).await.unwrap().status == 200
    })
    .await;
    let bearer = format!("Bearer {}", stand.issuer.token(|_| ()));
    let mut ids = Vec::new();
    for _ in 0..2 {
        for address in addresses {
            let headers = [("authorization", &*bearer)];
            let answer = get(address, &ca, "/credentials", &headers).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            ids.push(answer.json()["AccessKeyId"].clone());
        }
    }
    assert!(ids[0] == ids[2] && ids[1] == ids[3] && ids[0] != ids[1], "{ids:?}");
    assert_eq!(stand.emulator.report().issued, 2);
}

#[tokio::test]
async fn nothing_without_proof() {
    let stand = Stand::start().await;
    let issuer = &stand.issuer;
    let stranger = TokenIssuer::new("k1");
    let now = Timestamp::now().as_second();
    let good = issuer.token(|_| ());
    let parts: Vec<_> = good.split('.').collect();
    let other = URL_SAFE_NO_PAD.encode(json!({"iss":ISSUER,"sub":"system:serviceaccount:shop:admin","aud":["tollgate"],"exp":now + 60}).to_string());
    let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    // The public key as the secret of an HMAC, as in the oldest of tricks.
    let hmac = {
        use hmac::{Hmac, KeyInit as _, Mac as _};
        let message = format!("{}.{}", part(json!({"alg":"HS256","kid":"k1"})), part(claims()));
        let key = issuer.pair.public_key().as_ref();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
        mac.update(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    };
    let with_header = |header: Value| issuer.sign(&header, &claims());
    let tokens = [
        ("tampered claims", format!("{}.{other}.{}", parts[0], parts[2])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("half a signature", format!("{}.{}.{}", parts[0], parts[1], &parts[2][..40])),
        ("another's signature", stranger.token(|_| ())),
        ("expired", issuer.token(|claims| claims["exp"] = (now - 60).into())),
        ("not valid yet", issuer.token(|claims| claims["nbf"] = (now + 600).into())),
        (
            "without an end",
            issuer.token(|claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
        ),
        (
            "without an audience",
            issuer.token(|claims| drop(claims.as_object_mut().unwrap().remove("aud"))),
        ),
        ("another audience", issuer.token(|claims| claims["aud"] = json!(["sts.aliyuncs.com"]))),
        ("another issuer", issuer.token(|claims| claims["iss"] = "https://elsewhere".into())),
        ("no issuer", issuer.token(|claims| drop(claims.as_object_mut().unwrap().remove("iss")))),
        ("an end that is text", issuer.token(|claims| claims["exp"] = "never".into())),
        (
            "a stranger",
            issuer.token(|claims| claims["sub"] = "system:serviceaccount:other:x".into()),
        ),
        ("no subject", issuer.token(|claims| drop(claims.as_object_mut().unwrap().remove("sub")))),
        ("alg none", format!("{}.{}.", part(json!({"alg":"none","kid":"k1"})), part(claims()))),
        ("alg HS256", hmac),
        ("alg RS256", with_header(json!({"alg":"RS256","kid":"k1"}))),
        ("alg ES384", with_header(json!({"alg":"ES384","kid":"k1"}))),
        ("an unknown key", with_header(json!({"alg":"ES256","kid":"k2"}))),
        ("a key of its own", with_header(json!({"alg":"ES256","jwk":stranger.jwk(),"kid":"k9"}))),
        ("nonsense", "a.b.c".to_owned()),
        ("one part", "hush".to_owned()),
        ("a shared token and more", format!("{SHARED}x")),
        ("a part of a shared token", SHARED[..20].to_owned()),
        ("nothing", String::new()),
        ("much", "h".repeat(9_000)),
    ];
    for (what, token) in &tokens {
        let answer = stand.ask(token).await;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        assert!(!answer.text().contains("Secret"), "{what}");
    }
    let none: [(&str, &[(&str, &str)]); 3] =
        [("/credentials", &[]), ("/credentials?token=", &[]), ("/credentials?token=a.b.c", &[])];
    for (target, headers) in none {
        assert_eq!(stand.get(target, headers).await.status, 401, "{target}");
    }
    // A token that was overheard is of no use over plain HTTP: nothing speaks it here.
    let request =
        format!("GET /credentials HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {good}\r\n\r\n");
    let plain = raw(&stand.keyring.address().to_string(), request.as_bytes()).await;
    assert!(plain.is_none(), "{plain:?}");
    assert_eq!(stand.emulator.report().issued, 0);
    assert_eq!(stand.ask(&good).await.status, 200, "this test must be able to get one");
}

#[tokio::test]
async fn a_thousand_bad_requests_a_second_take_bounded_memory_and_keep_no_caller_away() {
    // It measures the memory of its process, in which other tests run: so it has one of its own.
    const ALONE: &str = "TOLLGATE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name =
            "keyring::a_thousand_bad_requests_a_second_take_bounded_memory_and_keep_no_caller_away";
        let mut alone = tokio::process::Command::new(std::env::current_exe().unwrap());
        let alone = alone.args([name, "--exact", "--nocapture"]).env(ALONE, "1").kill_on_drop(true);
        let alone = timeout(Duration::from_mins(5), alone.searched()).await.unwrap().unwrap();
        let printed = [alone.stdout, alone.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        assert!(alone.status.success() && printed.contains("1 passed"), "{printed}");
        return;
    }
    let stand = Stand::start().await;
    let good = stand.issuer.token(|_| ());
    let bad = TokenIssuer::new("k1").token(|_| ());
    assert_eq!(stand.ask(&good).await.status, 200);
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let flood = async |requests: usize| {
        let mut answers = JoinSet::new();
        for n in 0..requests {
            while answers.len() >= 64 {
                assert_eq!(answers.join_next().await.unwrap().unwrap(), 401);
            }
            let (address, ca) = (stand.keyring.address(), stand.path("ca.pem"));
            let token = format!("Bearer {}{}", bad, "A".repeat(n % 7));
            answers.spawn(async move {
                get(address, &ca, "/credentials", &[("authorization", &token)])
                    .await
                    .unwrap()
                    .status
            });
        }
        answers.join_all().await.into_iter().for_each(|status| assert_eq!(status, 401));
    };
    flood(300).await;
    let (before, begun) = (resident(), Instant::now());
    flood(1_500).await;
    let grown = resident().saturating_sub(before);
    println!("1,500 bad requests in {:?}, {grown} KiB more", begun.elapsed());
    assert!(grown < 32 * 1024, "{grown} KiB");
    assert_eq!(stand.ask(&good).await.status, 200);
    assert_eq!(stand.emulator.report().issued, 1);
}

/// Connections that say nothing, or drip, keep no place for long.
#[tokio::test]
async fn silent_connections_are_ended() {
    let stand = Stand::with(|_| (), |config| config.max_connections = 8).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(stand.keyring.address()).await.unwrap());
    }
    let begun = Instant::now();
    assert_eq!(stand.ask(&stand.issuer.token(|_| ())).await.status, 200);
    // They give way to it, long before their own time is over.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// Nor do tokens with unknown keys, while the key set that might have them does not come.
#[tokio::test]
async fn a_key_set_that_hangs_keeps_no_caller_waiting() {
    let issuer = TokenIssuer::new("k1");
    let set = issuer.set();
    let jwks = Server::start(move |n| {
        let set = set.clone();
        async move {
            if n > 1 {
                std::future::pending::<()>().await;
            }
            reply(200, set)
        }
    })
    .await;
    let stand = Stand::with(
        |_| (),
        |config| config.issuers[0].jwks = format!("http://{}/keys", jwks.address),
    )
    .await;
    let unknown = TokenIssuer::new("k2").token(|_| ());
    let begun = Instant::now();
    let (address, ca) = (stand.keyring.address(), stand.path("ca.pem"));
    let mut strangers = JoinSet::new();
    for _ in 0..20 {
        let (ca, token) = (ca.clone(), format!("Bearer {unknown}"));
        strangers.spawn(async move {
            get(address, &ca, "/credentials", &[("authorization", &token)]).await.unwrap().status
        });
    }
    assert_eq!(stand.ask(&issuer.token(|_| ())).await.status, 200);
    assert!(strangers.join_all().await.into_iter().all(|status| status == 401));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(jwks.requests().len(), 2);
}

#[tokio::test]
async fn bounds_on_callers_and_rates() {
    let stand = Stand::with(
        |_| (),
        |config| {
            // One of them is for the other caller, whatever this one does.
            config.max_callers = 3;
            config.requests_per_second = 3;
        },
    )
    .await;
    let of = |name: &str| {
        let subject = format!("system:serviceaccount:shop:{name}");
        stand.issuer.token(|claims| claims["sub"] = subject.into())
    };
    assert_eq!(stand.ask(&of("a")).await.status, 200);
    assert_eq!(stand.ask(&of("b")).await.status, 200);
    let third = stand.ask(&of("c")).await;
    assert_eq!((third.status, third.header("retry-after")), (503, "1"));
    assert_eq!(stand.ask(SHARED).await.status, 200);
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(stand.ask(&of("a")).await.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    until("it may ask again", async || stand.ask(&of("a")).await.status == 200).await;
}

#[tokio::test]
async fn a_key_is_kept_for_its_caller_until_half_of_its_life_and_while_the_service_is_down() {
    let life = Some(Duration::from_secs(4));
    let stand = Stand::with(|options| options.key_life = life, |_| ()).await;
    let first = stand.ask(SHARED).await.json()["AccessKeyId"].clone();
    assert_eq!(stand.ask(SHARED).await.json()["AccessKeyId"], first);
    until("it is renewed", async || stand.ask(SHARED).await.json()["AccessKeyId"] != first).await;

    let down = Fault { action: Some("AssumeRole".to_owned()), ..Fault::new(Then::Close) };
    stand.emulator.set_faults(vec![down]).unwrap();
    let kept = stand.ask(SHARED).await;
    assert_eq!(kept.status, 200, "the old one lives");
    until("it has ended", async || stand.ask(SHARED).await.status == 503).await;
    stand.emulator.set_faults(vec![]).unwrap();
    until("there is one again", async || stand.ask(SHARED).await.status == 200).await;
}

/// The end that a caller reads is by its own clock, also where the service's clock is off.
#[tokio::test]
async fn a_service_whose_clock_is_off_by_an_hour() {
    for offset in [3_600, -3_600] {
        let stand = Stand::with(|options| options.clock_offset = offset, |_| ()).await;
        let first = stand.ask(SHARED).await;
        assert_eq!(first.status, 200, "{offset}: {}", first.text());
        let first = first.json();
        let ends: Timestamp = first["Expiration"].as_str().unwrap().parse().unwrap();
        let left = ends.duration_since(Timestamp::now()).as_secs();
        assert!((3_570..=3_630).contains(&left), "{offset}: {left}");
        let again = stand.ask(SHARED).await.json();
        assert_eq!(again["AccessKeyId"], first["AccessKeyId"], "{offset}: it is kept");
    }
}

#[tokio::test]
async fn keys_of_issuers_rotate() {
    let (old, new) = (TokenIssuer::new("old"), TokenIssuer::new("new"));
    let sets = [old.set(), json!({"keys":[old.jwk(), new.jwk()]}).to_string()];
    let jwks = Server::start(move |n| {
        let set = sets[usize::from(n > 1)].clone();
        std::future::ready(reply(200, set))
    })
    .await;
    let stand = Stand::with(
        |_| (),
        |config| {
            config.issuers[0].jwks = format!("http://{}/keys", jwks.address);
        },
    )
    .await;
    assert_eq!(stand.ask(&old.token(|_| ())).await.status, 200);
    // A token that names a key which the set does not have yet has it read again.
    assert_eq!(stand.ask(&new.token(|_| ())).await.status, 200);
    for _ in 0..20 {
        assert_eq!(stand.ask(&TokenIssuer::new("other").token(|_| ())).await.status, 401);
    }
    assert!(jwks.requests().len() <= 3, "strangers do not make it ask on and on");
}

#[tokio::test]
async fn several_issuers_prove_their_own_callers_only() {
    let mine = TokenIssuer::new("k1");
    let jwks = Server::text(200, mine.set()).await;
    let stand = Stand::with(
        |_| (),
        |config| {
            let first = config.issuers[0].clone();
            let jwks = format!("http://{}/keys", jwks.address);
            config.issuers.push(Issuer { issuer: "https://second".to_owned(), jwks, ..first });
            let orders_too = of("https://second", "system:serviceaccount:shop:orders-too");
            config.callers.push(caller("orders-too", orders_too));
            config.callers.push(caller("twin", of("https://second", &format!("{SUBJECT}-twin"))));
        },
    )
    .await;
    let of_second = |claims: &mut Value| claims["iss"] = "https://second".into();
    // A namespace of one name in another cluster is another caller, or none.
    assert_eq!(stand.ask(&mine.token(of_second)).await.status, 401);
    let subject = |name: &'static str, iss: &'static str| {
        move |claims: &mut Value| (claims["iss"], claims["sub"]) = (iss.into(), name.into())
    };
    let too = "system:serviceaccount:shop:orders-too";
    let second = stand.ask(&mine.token(subject(too, "https://second"))).await;
    let first = stand.ask(&stand.issuer.token(subject(too, ISSUER))).await;
    assert_eq!((second.status, first.status), (200, 200));
    assert_ne!(second.json()["AccessKeyId"], first.json()["AccessKeyId"], "each has its own");
    assert_eq!(stand.ask(&mine.token(|_| ())).await.status, 401, "the other's name");
    assert_eq!(stand.ask(&stand.issuer.token(of_second)).await.status, 401);
    assert_eq!(stand.ask(&stand.issuer.token(|_| ())).await.status, 200);
}

/// Nor does it make the keyring unready, which would take it away from them.
#[tokio::test]
async fn an_issuer_that_is_away_stops_no_caller_of_the_others() {
    let (_held, nobody) = refusing();
    let stand = Stand::with(
        |_| (),
        |config| {
            let jwks = format!("http://{nobody}/keys");
            let first = config.issuers[0].clone();
            let away = Issuer { issuer: "https://away".to_owned(), jwks, ..first };
            config.issuers.insert(0, away);
        },
    )
    .await;
    assert_eq!(stand.get("/readyz", &[]).await.status, 200);
    assert_eq!(stand.ask(&stand.issuer.token(|_| ())).await.status, 200);
    let of_away = stand.issuer.token(|claims| claims["iss"] = "https://away".into());
    assert_eq!(stand.ask(&of_away).await.status, 401);
}

/// A caller that leaves while its key is made does not cost another request: what comes is kept for the next.
#[tokio::test]
async fn the_key_of_a_caller_that_has_left_is_kept() {
    let stand = Stand::start().await;
    let slow = Fault {
        action: Some("AssumeRole".to_owned()),
        latency: Some(Duration::from_millis(300)),
        ..Fault::new(Then::Answer)
    };
    stand.emulator.set_faults(vec![slow]).unwrap();
    for _ in 0..3 {
        // It hangs up when its request is under way.
        drop(timeout(Duration::from_millis(80), stand.ask(SHARED)).await);
    }
    assert_eq!(stand.ask(SHARED).await.status, 200);
    assert_eq!(stand.emulator.report().issued, 1);
}

/// However many callers come at once, a service that is slow has few requests, and one that fails is not asked
/// again for each of theirs.
#[tokio::test]
async fn the_token_service_is_asked_by_few_at_once() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = (Arc::clone(&now), Arc::clone(&most));
    let sts = Server::start(move |_| {
        let (now, most) = counted.clone();
        async move {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            now.fetch_sub(1, SeqCst);
            reply(403, r#"{"Code":"NoPermission","RequestId":"R"}"#)
        }
    })
    .await;
    let stand = Stand::with(
        |_| (),
        |config| {
            config.sts.port = sts.address.port();
            config.max_connections = 512;
        },
    )
    .await;
    let mut callers = JoinSet::new();
    for n in 0..50 {
        let subject = format!("system:serviceaccount:shop:{n}");
        let token = stand.issuer.token(|claims| claims["sub"] = subject.into());
        let (address, ca) = (stand.keyring.address(), stand.path("ca.pem"));
        callers.spawn(async move {
            let authorization = format!("Bearer {token}");
            let headers = [("authorization", &*authorization)];
            for _ in 0..2 {
                let answer = get(address, &ca, "/credentials", &headers).await.unwrap();
                assert_eq!(answer.status, 503);
            }
        });
    }
    callers.join_all().await;
    assert!(most.load(SeqCst) <= 16, "{} at once", most.load(SeqCst));
    assert_eq!(sts.requests().len(), 50, "one for each caller, which then waits");
}

#[tokio::test]
async fn probes_and_paths() {
    let stand = Stand::start().await;
    assert_eq!(stand.get("/livez", &[]).await.status, 200);
    assert_eq!(stand.get("/other", &[]).await.status, 404);
    let shared = stand.ask(SHARED).await;
    let text = shared.text();
    let key: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(key.as_object().unwrap().len(), 6, "{text}");
    stand.keyring.stop().await;
}

/// Anyone may ask whether it is ready: what is wrong stands in its log.
#[tokio::test]
async fn a_stranger_learns_nothing_from_probes() {
    let base =
        KeySource::File { path: "/nowhere/of/this/host".into(), poll: Duration::from_secs(1) };
    let base = Keys::start(&base.into(), CancellationToken::new()).unwrap();
    base.first_look().await;
    let jwks = Issuer {
        issuer: "https://issuer.internal".to_owned(),
        jwks: "http://127.0.0.1:1/keys".to_owned(),
        ca_file: None,
        token_file: None,
    };
    let good = Key::new(DEMO_KEY_ID, DEMO_KEY_SECRET.into(), None, None).unwrap();
    for base in [base, Keys::fixed(good)] {
        let config = Keyring { tls: None, issuers: vec![jwks.clone()], ..config() };
        let keyring = RunningKeyring::start(&config, base).await.unwrap();
        let address = keyring.address().to_string();
        let answer = crate::support::http::get(&address, "/readyz").await;
        assert_eq!(answer.status, 503);
        let text = answer.text();
        for hidden in ["nowhere", "issuer", "127.0.0.1", "LTAI"] {
            let is_word = text == "no issuer's keys are known: see the log\n";
            assert!(!text.contains(hidden) || hidden == "issuer" && is_word, "{text}");
        }
    }
}
