//! No secret leaves the process but in a signature: not in a log at trace level, `check`'s output,
//! a problem, a metric, the page or a `Debug` print.

use crate::keys::sources::service_account_token;
use crate::support::http::{get, post};
use crate::support::process::{Emulator, Keyring, Serve, run};
use crate::support::script::{Script, error, json, ok};
use crate::support::until;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tollgate::keys::Key;

const SECRET: &str = "S3cr3tOfThisTestOnly";
const TOKEN: &str = "T0ken/Of+ThisTest==";
const PAYLOAD: &str = "pr1vate-payload-of-a-caller";

fn holds_none(what: &str, text: &str) {
    let encoded = TOKEN.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
    for secret in [
        SECRET.to_owned(),
        STANDARD.encode(SECRET),
        TOKEN.to_owned(),
        encoded,
        PAYLOAD.to_owned(),
        STANDARD.encode(PAYLOAD),
    ] {
        assert!(!text.contains(&secret), "{what} holds {secret}:\n{text}");
    }
}

#[tokio::test]
async fn nothing_that_is_shown_holds_a_secret() {
    // The real provider repeats the signed string, payload and all, when a signature is wrong.
    let repeated = format!(
        r#"{{"Code":"SignatureDoesNotMatch","RequestId":"R","Message":"server string to sign is:POST&%2F&{SECRET}{TOKEN}{PAYLOAD}"}}"#
    );
    let script = Script::start([
        ok(),
        json(400, &[], &repeated),
        error(500, "SendMessageFailed"),
        error(500, "SendMessageFailed"),
        error(500, "SendMessageFailed"),
    ])
    .await;
    let env = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-of-this-test"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET),
        ("ALIBABA_CLOUD_SECURITY_TOKEN", TOKEN),
    ];
    for signature in ["hmac-sha1", "acs3-hmac-sha256"] {
        let settings = [
            ("upstream.endpoint", script.url.as_str()),
            ("upstream.signature", signature),
            ("telemetry.level", "trace"),
        ];
        let serve = Serve::start(&settings, &env).await;
        for _ in 0..3 {
            let answer = post(&serve.publish, "/publish/TopicA", &[], PAYLOAD.as_bytes()).await;
            holds_none("an answer", &answer.text());
            holds_none("its headers", &format!("{:?}", answer.headers));
        }
        post(&serve.publish, "/publish/no", &[], PAYLOAD.as_bytes()).await;
        for path in ["/metrics", "/status.json", "/", "/readyz?verbose", "/startupz"] {
            holds_none(path, &get(&serve.telemetry, path).await.text());
        }
        serve.signal(rustix::process::Signal::TERM);
        let (status, log) = serve.ended().await;
        assert!(status.success(), "{log}");
        assert!(log.contains("\"called\""), "this test must look at every line:\n{log}");
        holds_none("the log", &log);
        assert!(script.requests()[0].contains("id-of-this-test"), "the key was used");
    }

    let uri = format!("http://user:{SECRET}@127.0.0.1:1/key?token={SECRET}");
    let sets = [
        "--set=upstream.endpoint=http://127.0.0.1:1",
        "--set=upstream.instance_id=i",
        "--set=keys.source=uri",
        &format!("--set=keys.uri={uri}"),
    ];
    let said = run(&[&["check"], &sets[..]].concat(), &env).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    holds_none("check", &said.stdout);
    // An URI of a wrong kind is a mistake; what is said of it holds no more.
    let wrong = format!("--set=keys.uri=ftp://user:{SECRET}@h/?t={SECRET}");
    let said = run(&["check", sets[0], sets[1], sets[2], &wrong], &env).await;
    assert_eq!(said.code, 4);
    holds_none("a mistake", &said.stderr);

    let key = Key::new("id", SECRET.into(), Some(TOKEN.into()), None).unwrap();
    holds_none("Debug", &format!("{key:?}"));
    let runtime = tokio::runtime::Handle::current();
    let _inside = runtime.enter();
    holds_none("Debug", &format!("{:?}", tollgate::keys::Keys::fixed(key)));
}

/// Nor does a source of keys, whatever it asks and whoever refuses it.
#[tokio::test]
async fn no_source_of_keys_shows_a_secret() {
    let keys = format!("id-of-this-test={SECRET}");
    let emulator = Emulator::start(&["--keys", &keys]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("token"), format!("{}{SECRET}", service_account_token(3_600))).unwrap();
    std::fs::write(path("shared"), TOKEN).unwrap();
    let profile = format!(
        r#"{{"current":"a","profiles":[{{"name":"a","mode":"AK","access_key_id":"id-of-this-test","access_key_secret":"{SECRET}"}}]}}"#
    );
    std::fs::write(path("config.json"), profile).unwrap();
    let url = emulator.url();
    let role = "acs:ram::1:role/r";
    let uri = format!(
        "http://user:{SECRET}@{}/latest/meta-data/ram/security-credentials/EmulatedRole?token={SECRET}",
        emulator.address
    );
    let (token, shared, config) = (path("token"), path("shared"), path("config.json"));
    let env = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-of-this-test"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET),
    ];
    let refusals = br#"[{"action":"AssumeRole","code":"NoPermission","times":1},{"action":"AssumeRoleWithOIDC","then":"html-503","times":1},{"action":"metadata","then":"close","times":1}]"#;
    for source in [
        vec![("keys.source", "role"), ("keys.role_arn", role)],
        vec![
            ("keys.source", "oidc"),
            ("keys.oidc_role_arn", role),
            ("keys.oidc_provider_arn", "acs:ram::1:oidc-provider/p"),
            ("keys.oidc_token_file", &token),
        ],
        vec![("keys.source", "uri"), ("keys.uri", &uri), ("keys.uri_token_file", &shared)],
        vec![("keys.source", "ecs"), ("keys.ecs_endpoint", &url)],
        vec![("keys.source", "cli"), ("keys.cli_config", &config)],
    ] {
        post(&emulator.address, "/_emulator/faults", &[], refusals).await;
        let base = [
            ("upstream.endpoint", url.as_str()),
            ("keys.sts_endpoint", &url),
            ("telemetry.level", "trace"),
        ];
        let serve = Serve::start(&[&base[..], &source].concat(), &env).await;
        until("it has a key", async || get(&serve.telemetry, "/startupz").await.status == 200)
            .await;
        let answer = post(&serve.publish, "/publish/TopicA", &[], PAYLOAD.as_bytes()).await;
        assert_eq!(answer.status, 200, "{source:?}: {}", answer.text());
        for path in ["/metrics", "/status.json", "/readyz?verbose"] {
            holds_none(path, &get(&serve.telemetry, path).await.text());
        }
        serve.signal(rustix::process::Signal::TERM);
        let (_, log) = serve.ended().await;
        holds_none("the log", &log);
    }

    let file = format!(
        "[telemetry]\nlevel = \"trace\"\n[keys]\nsts_endpoint = \"{url}\"\n[keyring]\nlisten = \"127.0.0.1:0\"\n\
         role_arn = \"{role}\"\n[[keyring.callers]]\nname = \"batch\"\ntoken_file = \"{shared}\"\n"
    );
    std::fs::write(path("keyring.toml"), file).unwrap();
    let keyring = Keyring::start(&path("keyring.toml"), &["id-of-this-test", SECRET]).await;
    let encoded = TOKEN.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
    for (target, expected) in [
        (format!("/credentials?token={encoded}"), 200),
        (format!("/credentials?token={SECRET}"), 401),
        (format!("/{SECRET}"), 404),
    ] {
        until(&target, async || get(&keyring.address, &target).await.status == expected).await;
        let answer = get(&keyring.address, &target).await;
        if expected == 200 {
            for part in ["AccessKeySecret", "SecurityToken"] {
                keyring.has_secret(answer.json()[part].as_str().unwrap());
            }
        }
    }
    let log = keyring.log();
    assert!(log.contains("key handed out") && log.contains("no key handed out"), "{log}");
    holds_none("the keyring's log", &log);
}
