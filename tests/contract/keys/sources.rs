//! Every source that fetches keys, through the same table: what succeeds, what fails, and what is said of it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tollgate::config::{
    CliFile, CliFiles, EcsMetadata, Endpoint, KeySource, KeyUri, MetadataV1, OidcRole, RoleOf,
    RoleSession, StsService,
};
use tollgate::emulator::{
    DEMO_KEY_ID, DEMO_KEY_SECRET, Emulator, EmulatorOptions, Fault, MetadataAccess, Then,
};
use tollgate::keys::{Key, KeyError, Keys, Source, source_of};
use tollgate::message::MessageId;

use super::server::{Server, reply};
use crate::support::ports::refusing;

const ROLE: &str = "acs:ram::1000000000000001:role/tollgate";
const PROVIDER: &str = "acs:ram::1000000000000001:oidc-provider/ack-rrsa-c1";

/// A folder with what sources read, and the sources that read it.
struct Given {
    folder: TempDir,
    server: SocketAddr,
}

/// A token that Kubernetes would mount, valid for so long.
pub(crate) fn service_account_token(life: i64) -> String {
    let part = |json: String| URL_SAFE_NO_PAD.encode(json);
    let ends = Timestamp::now().as_second() + life;
    let claims = format!(
        r#"{{"iss":"https://issuer","aud":["sts.aliyuncs.com"],"sub":"system:serviceaccount:a:b","exp":{ends}}}"#
    );
    format!("{}.{}.hushsignature", part(r#"{"alg":"RS256"}"#.to_owned()), part(claims))
}

impl Given {
    fn new(server: SocketAddr) -> Self {
        let folder = TempDir::new().unwrap();
        let given = Self { folder, server };
        given.write("token", &service_account_token(3_600));
        given.write("access_key_id", DEMO_KEY_ID);
        given.write("access_key_secret", DEMO_KEY_SECRET);
        let profile = format!(
            r#"{{"current":"work","profiles":[{{"name":"work","mode":"RamRoleArn",
            "access_key_id":"{DEMO_KEY_ID}","access_key_secret":"{DEMO_KEY_SECRET}",
            "ram_role_arn":"{ROLE}","ram_session_name":"cli","expired_seconds":3600}}]}}"#
        );
        given.write("config.json", &profile);
        let section = format!(
            "[default]\ntype = oidc_role_arn # RRSA\nrole_arn = {ROLE}\noidc_provider_arn={PROVIDER}\n\
             oidc_token_file_path = {}\n",
            given.path("token").display()
        );
        given.write("credentials.ini", &section);
        given
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn endpoint(&self) -> Endpoint {
        let (host, port) = (self.server.ip().to_string(), self.server.port());
        Endpoint { tls: false, host, port }
    }

    fn ecs(&self) -> EcsMetadata {
        let role = Some("EmulatedRole".to_owned());
        EcsMetadata { role, endpoint: self.endpoint(), v1: MetadataV1::Allowed }
    }

    fn oidc(&self) -> KeySource {
        KeySource::Oidc(OidcRole {
            provider_arn: PROVIDER.to_owned(),
            token_file: self.path("token"),
            session: session(),
            sts: self.endpoint(),
        })
    }

    fn role(&self) -> KeySource {
        let base = file_of(self);
        let session = RoleSession { external_id: Some("partner-7".to_owned()), ..session() };
        KeySource::Role(Box::new(RoleOf { base, session, sts: self.endpoint() }))
    }

    fn cli(&self, files: &[(CliFile, &str)]) -> KeySource {
        KeySource::Cli(CliFiles {
            files: files.iter().map(|(kind, name)| (*kind, self.path(name))).collect(),
            profile: None,
            session_name: "tollgate".to_owned(),
            session_duration: Duration::from_hours(1),
            sts: StsService { endpoint: Some(self.endpoint()), ..StsService::default() },
            ecs: self.ecs(),
        })
    }

    fn uri(&self) -> KeySource {
        let path = "latest/meta-data/ram/security-credentials/EmulatedRole";
        let mut uri = KeyUri::plain(format!("http://user:hush@{}/{path}?for=hush", self.server));
        uri.token_file = Some(self.path("token"));
        KeySource::Uri(uri)
    }

    /// Every source that asks a server.
    fn all(&self) -> Vec<(&'static str, KeySource)> {
        vec![
            ("uri", self.uri()),
            ("oidc", self.oidc()),
            ("role", self.role()),
            ("ecs", KeySource::Ecs(self.ecs())),
            ("cli json", self.cli(&[(CliFile::Json, "config.json")])),
            ("cli ini", self.cli(&[(CliFile::Json, "absent"), (CliFile::Ini, "credentials.ini")])),
            ("auto", KeySource::Auto(vec![KeySource::Env, self.oidc(), self.uri()])),
        ]
    }
}

fn session() -> RoleSession {
    RoleSession {
        role_arn: ROLE.to_owned(),
        name: "tollgate".to_owned(),
        duration: Duration::from_hours(1),
        policy: None,
        external_id: None,
    }
}

async fn load(source: &KeySource) -> Result<Key, KeyError> {
    source_of(source).unwrap().load().await
}

/// What one look says; no secret may be in it.
async fn failure(name: &str, source: &KeySource) -> String {
    let error = load(source).await.unwrap_err();
    let shown = format!("{error} {error:?} {source:?}");
    for secret in ["hush", DEMO_KEY_SECRET] {
        assert!(!shown.contains(secret), "{name}: {shown}");
    }
    error.to_string()
}

fn emulator(change: impl FnOnce(&mut EmulatorOptions)) -> Emulator {
    let mut options =
        EmulatorOptions { listen: "127.0.0.1:0".parse().unwrap(), ..EmulatorOptions::default() };
    change(&mut options);
    Emulator::start(options).unwrap()
}

/// The same key as an answer of STS and of everything else.
fn answer(expiration: &str) -> String {
    let key = format!(
        r#""AccessKeyId":"STS.1","AccessKeySecret":"hushsecret","SecurityToken":"hushtoken","Expiration":"{expiration}""#
    );
    format!(r#"{{"Code":"Success",{key},"Credentials":{{{key}}}}}"#)
}

#[tokio::test]
async fn a_key_of_each_source() {
    let emulator = emulator(|_| ());
    let given = Given::new(emulator.address());
    for (name, source) in given.all() {
        let key = load(&source).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(key.id().starts_with("STS.") && key.token().is_some(), "{name}");
        let left = key.expires().unwrap().duration_since(Timestamp::now());
        assert!((3_500..=3_600).contains(&left.as_secs()), "{name}: {left}");
    }
    assert_eq!(emulator.report().issued, 7);
}

#[tokio::test]
async fn a_slow_server_is_waited_for_and_one_that_fails_is_named() {
    let emulator = emulator(|_| ());
    let given = Given::new(emulator.address());
    let origin = format!("http://{}: ", emulator.address());
    let actions = ["AssumeRole", "AssumeRoleWithOIDC", "metadata"];
    let all = |fault: &Fault| {
        let of = |action: &&str| Fault { action: Some((*action).to_owned()), ..fault.clone() };
        emulator.set_faults(actions.iter().map(of).collect()).unwrap();
    };
    all(&Fault { latency: Some(Duration::from_millis(100)), ..Fault::new(Then::Answer) });
    for (name, source) in given.all() {
        load(&source).await.unwrap_or_else(|error| panic!("slow {name}: {error}"));
    }
    for (fault, expected) in [
        (Fault::new(Then::Close), ""),
        (Fault::new(Then::Html503), "HTTP status 503"),
        (Fault { status: Some(403), ..Fault::answer("NoPermission") }, ""),
    ] {
        all(&fault);
        for (name, source) in given.all() {
            let error = failure(name, &source).await;
            assert!(error.contains(&origin) && error.contains(expected), "{name}: {error}");
        }
    }
    // The provider's own word for it.
    let error = failure("role", &given.role()).await;
    assert!(error.contains("AssumeRole: refused with NoPermission (request "), "{error}");
}

#[tokio::test]
async fn a_server_that_is_down_is_named() {
    let (_held, nobody) = refusing();
    let given = Given::new(nobody);
    for (name, source) in given.all() {
        let error = failure(name, &source).await;
        let expected = format!("http://{nobody}: Connection refused");
        assert!(error.contains(&expected), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    for at in 0..7 {
        let server = Server::start(|_| std::future::pending()).await;
        let given = Given::new(server.address);
        let (name, source) = given.all().swap_remove(at);
        let begun = Instant::now();
        let look = tokio::spawn(async move { failure(name, &source).await });
        server.asked().await;
        // Connecting is real; only the waiting that follows is skipped.
        tokio::time::pause();
        let error = look.await.unwrap();
        tokio::time::resume();
        assert!(error.contains(": timed out"), "{name}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(40), "{name}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn answers_that_are_no_key() {
    for body in [
        "",
        "hush",
        "[]",
        "{}",
        r#"{"Credentials":{"AccessKeyId":"hush"}}"#,
        r#"{"Credentials":7,"AccessKeyId":7}"#,
        &answer("hush"),
        &answer("2024-01-02T09:04:05Z").replace("hushsecret", "hush secret"),
    ] {
        let server = Server::text(200, body.to_owned()).await;
        for (name, source) in Given::new(server.address).all() {
            let error = failure(name, &source).await;
            let origin = format!("http://{}: ", server.address);
            assert!(error.contains(&origin), "{name}: {body}: {error}");
            assert!(error.contains("its answer") || error.contains("secret has white"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_end_in_the_past_and_at_the_edges_of_time() {
    for (end, is_key) in [
        ("2024-01-02T09:04:05Z", false),
        ("-009999-01-01T00:00:00Z", false),
        ("1970-01-01T00:00:00Z", false),
        ("9999-12-31T23:59:59Z", true),
        ("9999-12-30T21:59:59Z", true),
        ("2999-02-28T23:59:60Z", true),
    ] {
        let server = Server::text(200, answer(end)).await;
        for (name, source) in Given::new(server.address).all() {
            let keys = Keys::start(&source.into(), CancellationToken::new()).unwrap();
            keys.first_look().await;
            let shown = format!("{name} {end}: {:?}", keys.status());
            assert_eq!(keys.current().is_ok(), is_key, "{shown}");
            let error = keys.status().last_error;
            assert!(error.is_none_or(|error| error.contains("expired at")), "{shown}");
        }
    }
}

/// The server's clock is the one that counts, for a key's end as for a signature's time.
#[tokio::test]
async fn a_clock_that_is_off_by_an_hour() {
    for offset in [3_600, -3_600] {
        let emulator = emulator(|options| options.clock_offset = offset);
        let given = Given::new(emulator.address());
        given.write("token", &service_account_token(7_200));
        for (name, source) in given.all() {
            let keys = Keys::start(&source.into(), CancellationToken::new()).unwrap();
            keys.first_look().await;
            let key = keys.current();
            let key = key.unwrap_or_else(|_| panic!("{name} {offset}: {:?}", keys.status()));
            let left = key.expires().unwrap().duration_since(Timestamp::now());
            let hour = SignedDuration::from_hours(1);
            assert!((hour - left).abs() < SignedDuration::from_secs(30), "{name} {offset}: {left}");
        }
    }
}

#[tokio::test]
async fn an_answer_without_end_is_left_at_its_bound() {
    let server = Server::text(200, " ".repeat(65_537)).await;
    for (name, source) in Given::new(server.address).all() {
        let error = failure(name, &source).await;
        assert!(error.contains("answered with more than 65536 bytes"), "{name}: {error}");
    }
}

// === What each asks for ===

#[tokio::test]
async fn the_token_of_a_service_account_is_read_each_time_and_never_stands_in_an_address() {
    let server = Server::text(200, answer("2999-01-01T00:00:00Z")).await;
    let given = Given::new(server.address);
    let mut source = source_of(&given.oidc()).unwrap();
    source.load().await.unwrap();
    let first = server.requests();
    let target = first[0].uri().to_string();
    assert!(target.contains("Action=AssumeRoleWithOIDC") && !target.contains("Token"), "{target}");
    assert!(!first[0].headers().contains_key("authorization"), "it is not signed");

    let path = given.path("token");
    for (text, expected) in [
        ("", "is empty"),
        ("hush hush", "holds no token"),
        (&*"h".repeat(20_001), "is larger than 20000 bytes"),
    ] {
        fs::write(&path, text).unwrap();
        let error = source.load().await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{}: {expected}", path.display()).replace(
                "holds no token",
                "holds no token: it has white space or control characters"
            )
        );
    }
    fs::remove_file(&path).unwrap();
    let error = source.load().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    assert_eq!(server.requests().len(), 1, "nothing is sent without a token");
    given.write("token", &service_account_token(60));
    source.load().await.unwrap();
}

#[tokio::test]
async fn a_role_is_asked_for_with_its_external_id_and_policy() {
    let emulator = emulator(|_| ());
    let given = Given::new(emulator.address());
    let KeySource::Role(mut role) = given.role() else { unreachable!() };
    let policy = r#"{"Version":"1","Statement":[{"Effect":"Allow","Action":"mq:SendMessage","Resource":"*"}]}"#;
    role.session.policy = Some(policy.to_owned());
    let key = load(&KeySource::Role(role)).await.unwrap();
    let address = emulator.address().to_string();
    let keys = crate::support::http::get(&address, "/_emulator/keys").await.json();
    let issued = keys.as_array().unwrap().iter().find(|one| one["id"] == key.id()).unwrap();
    assert_eq!(issued["role"]["external_id"], "partner-7");
    assert_eq!(issued["role"]["session_name"], "tollgate");
    assert_eq!(issued["policy"]["Statement"][0]["Action"], "mq:SendMessage");
    assert!(!keys.to_string().contains(DEMO_KEY_SECRET), "{keys}");
}

#[tokio::test]
async fn the_metadata_service_is_asked_with_a_token() {
    let strict = emulator(|options| options.metadata = MetadataAccess::TokenOnly);
    let given = Given::new(strict.address());
    let ecs = EcsMetadata { role: None, v1: MetadataV1::Refused, ..given.ecs() };
    assert!(load(&KeySource::Ecs(ecs)).await.is_ok(), "it finds the role, too");

    // A service that knows version 1 only.
    for (v1, is_key) in [(MetadataV1::Allowed, true), (MetadataV1::Refused, false)] {
        let server = Server::start(|n| {
            let answered = match n {
                1 => reply(404, ""),
                2 => reply(200, "EmulatedRole\n"),
                _ => reply(200, answer("2999-01-01T00:00:00Z")),
            };
            std::future::ready(answered)
        })
        .await;
        let given = Given::new(server.address);
        let ecs = EcsMetadata { role: None, v1, ..given.ecs() };
        assert_eq!(load(&KeySource::Ecs(ecs)).await.is_ok(), is_key);
        assert_eq!(server.requests().len(), if is_key { 3 } else { 1 });
    }
    // A machine without a role.
    let server = Server::text(404, "").await;
    let given = Given::new(server.address);
    let error = failure("ecs", &KeySource::Ecs(EcsMetadata { role: None, ..given.ecs() })).await;
    assert!(error.ends_with("this machine has no RAM role"), "{error}");
}

#[tokio::test]
async fn profiles_of_every_mode() {
    let emulator = emulator(|_| ());
    let given = Given::new(emulator.address());
    let token = given.path("token").display().to_string();
    let ak = format!(r#""access_key_id":"{DEMO_KEY_ID}","access_key_secret":"{DEMO_KEY_SECRET}""#);
    let role = format!(r#""ram_role_arn":"{ROLE}","ram_session_name":"x1""#);
    for (profile, id) in [
        (format!(r#""mode":"AK",{ak}"#), Some(DEMO_KEY_ID)),
        (format!(r#""mode":"StsToken",{ak},"sts_token":"hush""#), Some(DEMO_KEY_ID)),
        (format!(r#""mode":"RamRoleArn",{ak},{role},"expired_seconds":0"#), Some("STS.")),
        (r#""mode":"EcsRamRole""#.to_owned(), Some("STS.")),
        (
            format!(
                r#""mode":"OIDC",{role},"oidc_provider_arn":"{PROVIDER}","oidc_token_file":"{token}""#
            ),
            Some("STS."),
        ),
        (format!(r#""mode":"ChainableRamRoleArn",{role},"source_profile":"base""#), Some("STS.")),
        (format!(r#""mode":"ChainableRamRoleArn",{role},"source_profile":"work""#), None),
        (format!(r#""mode":"ChainableRamRoleArn",{role},"source_profile":"none""#), None),
        (r#""mode":"AK","access_key_id":"hush""#.to_owned(), None),
        (r#""mode":"External","process_command":"hush""#.to_owned(), None),
        (r#""mode":7"#.to_owned(), None),
    ] {
        let text = format!(
            r#"{{"current":"work","profiles":[{{"name":"base","mode":"AK",{ak}}},{{"name":"work",{profile}}}]}}"#
        );
        given.write("config.json", &text);
        let source = given.cli(&[(CliFile::Json, "config.json")]);
        if let Some(id) = id {
            let key = load(&source).await.unwrap_or_else(|error| panic!("{profile}: {error}"));
            assert!(key.id().starts_with(id), "{profile}");
        } else {
            let error = failure(&profile, &source).await;
            let path = given.path("config.json").display().to_string();
            assert!(error.starts_with(&path), "{error}");
        }
    }
    for (section, id) in [
        (
            format!(
                "type=access_key\naccess_key_id={DEMO_KEY_ID}\naccess_key_secret = {DEMO_KEY_SECRET} # x"
            ),
            Some(DEMO_KEY_ID),
        ),
        ("type = ecs_ram_role".to_owned(), Some("STS.")),
        (
            format!(
                "type=ram_role_arn\naccess_key_id={DEMO_KEY_ID}\naccess_key_secret={DEMO_KEY_SECRET}\nrole_arn={ROLE}"
            ),
            Some("STS."),
        ),
        ("type=rsa_key_pair\npublic_key_id=hush".to_owned(), None),
        ("access_key_id=hush".to_owned(), None),
    ] {
        given.write(
            "credentials.ini",
            &format!("[other]\ntype=x\n\n[ default ]\n{section}\n[next]\n"),
        );
        let source = given.cli(&[(CliFile::Ini, "credentials.ini")]);
        match id {
            Some(id) => assert!(load(&source).await.unwrap().id().starts_with(id), "{section}"),
            None => assert!(failure(&section, &source).await.contains("section [default]")),
        }
    }
}

/// The first source that has a key is kept, and named wherever the source is shown.
#[tokio::test]
async fn auto_says_which_source_it_has_found() {
    let emulator = emulator(|_| ());
    let given = Given::new(emulator.address());
    let absent = given.cli(&[(CliFile::Json, "absent")]);
    let chain = KeySource::Auto(vec![absent.clone(), given.oidc(), given.uri()]);
    let keys = Keys::start(&chain.into(), CancellationToken::new()).unwrap();
    keys.loaded().await;
    assert_eq!(keys.status().source, "oidc");
    fs::remove_file(given.path("token")).unwrap();
    let first = keys.current().unwrap();
    assert!(!keys.refresh(&first).await, "no other source takes its place");
    assert_eq!(keys.status().source, "oidc");

    // The next one is not asked, although it works.
    let broken = KeySource::Auto(vec![absent.clone(), given.oidc(), given.role()]);
    let error = failure("auto", &broken).await;
    assert!(error.contains(&given.path("token").display().to_string()), "{error}");
    assert!(error.contains("oidc, which is set up here"), "{error}");

    let error = failure("auto", &KeySource::Auto(vec![KeySource::Env, absent])).await;
    for name in ["ALIBABA_CLOUD_ACCESS_KEY_ID", "absent"] {
        assert!(error.contains(name), "{error}");
    }
}

/// One failure at the start does not bring the key of another identity: a source that is set up is waited for.
#[tokio::test]
async fn auto_waits_for_a_source_that_is_set_up() {
    let emulator = emulator(|_| ());
    let given = Given::new(emulator.address());
    let named = KeySource::Ecs(given.ecs());
    for (first, action, word) in [
        (given.oidc(), "AssumeRoleWithOIDC", "oidc"),
        (given.cli(&[(CliFile::Json, "config.json")]), "AssumeRole", "cli"),
        (named, "metadata", "ecs"),
    ] {
        let once =
            Fault { action: Some(action.to_owned()), times: Some(1), ..Fault::new(Then::Close) };
        emulator.set_faults(vec![once]).unwrap();
        let chain = KeySource::Auto(vec![KeySource::Env, first, file_of(&given)]);
        let keys = Keys::start(&chain.into(), CancellationToken::new()).unwrap();
        keys.first_look().await;
        assert!(keys.current().is_err(), "{word}");
        assert!(keys.status().last_error.unwrap().contains(word));
        keys.loaded().await;
        assert_eq!(keys.status().source, word);
    }
}

/// No metadata service and no role of it are no failure: this is not a machine of the provider's.
#[tokio::test]
async fn auto_goes_on_where_there_is_no_metadata_service() {
    let (_held, nobody) = refusing();
    let given = Given::new(nobody);
    let ecs = KeySource::Ecs(EcsMetadata { role: None, ..given.ecs() });
    let chain = KeySource::Auto(vec![ecs, file_of(&given)]);
    let keys = Keys::start(&chain.into(), CancellationToken::new()).unwrap();
    keys.loaded().await;
    assert_eq!(keys.status().source, "file");
}

fn file_of(given: &Given) -> KeySource {
    KeySource::File { path: given.folder.path().to_owned(), poll: Duration::from_secs(1) }
}

/// One policy for all: a start is no failure, callers learn at once that there is no key, and the path or
/// the address is named.
#[tokio::test]
async fn a_source_without_a_key_is_waited_for_and_named() {
    let (_held, nobody) = refusing();
    let given = Given::new(nobody);
    let absent = Path::new("/nowhere/at/all");
    let file = KeySource::File { path: absent.to_owned(), poll: Duration::from_secs(1) };
    fs::remove_file(given.path("token")).unwrap();
    let origin = format!("http://{nobody}");
    let path = given.path("token").display().to_string();
    for (source, named) in [
        (KeySource::Env, "ALIBABA_CLOUD_ACCESS_KEY_ID"),
        (file, "/nowhere/at/all"),
        (given.oidc(), &path),
        (given.uri(), &path),
        (given.role(), &origin),
        (KeySource::Ecs(given.ecs()), &origin),
        (given.cli(&[(CliFile::Json, "absent")]), "absent"),
        (KeySource::Auto(vec![KeySource::Env, given.oidc()]), &path),
    ] {
        let shown = format!("{source:?}");
        let keys = Keys::start(&source.into(), CancellationToken::new()).unwrap();
        assert!(matches!(keys.current(), Err(KeyError::NotLoaded)), "{shown}");
        keys.first_look().await;
        assert!(matches!(keys.choose(MessageId::new()), Err(KeyError::NotLoaded)), "{shown}");
        let error = keys.status().last_error.unwrap();
        assert!(error.contains(named), "{shown}: {error}");
    }
}
