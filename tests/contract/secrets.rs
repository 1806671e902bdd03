//! No secret leaves the process but in a signature: not in a log at trace level, `check`'s output,
//! a problem, a metric, the page or a `Debug` print.

use crate::support::http::{get, post};
use crate::support::process::{Serve, run};
use crate::support::script::{Script, error, json, ok};
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
