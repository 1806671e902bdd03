//! On a real Redis: what a sidecar trusts of what it finds, with keys and without.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use redis::Commands;
use tempfile::TempDir;
use tokio::time::timeout;
use tracing::Level;

use super::super::{Change, OpenError, Options, ReadError, Spool, State};
use super::shared::{CALM, fleet, share_in, share_of};
use super::trust::{Peer, adopting_by, allows, ids, left_by};
use super::{BOUND, death, message, options, receipt, until};
use crate::config::{MacFile, Unsigned};
use crate::log_limiter::captured::capture;
use crate::message::MessageId;
use crate::redis_client::server::Redis;

/// A folder with files of keys.
struct KeyFiles(TempDir);

impl KeyFiles {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A file with these keys, each of 32 times this byte.
    fn write(&self, name: &str, keys: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        let lines = keys.iter().map(|key| STANDARD.encode([*key; 32]) + "\n");
        // As a mounted Secret: another file takes its place at once.
        let new = self.0.path().join("new");
        fs::write(&new, lines.collect::<String>()).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }
}

fn with_mac(path: &Path, unsigned: Unsigned) -> Options {
    let mac = Some(MacFile { path: path.to_owned(), unsigned });
    Options { mac, ..options("/nowhere".as_ref()) }
}

fn words_of(redis: &Redis, id: MessageId) -> String {
    redis.connection().hget("tollgate:{a}:spool:words", id.to_string()).unwrap()
}

fn set_words(redis: &Redis, id: MessageId, words: &str) {
    let key = "tollgate:{a}:spool:words";
    let _: () = redis.connection().hset(key, id.to_string(), words).unwrap();
}

/// Puts a record into Redis whose owner is the one of `like`: this id, these words (without its entry),
/// this body.
fn plant(redis: &Redis, like: MessageId, id: impl Display, words: &str, body: &[u8]) {
    let script = "local S, W = KEYS[1], KEYS[2]
        local entry = string.match(redis.call('HGET', W, ARGV[1]), '^%S+')
        local owner = redis.call('XPENDING', S, 'tollgate', entry, entry, 1)[1][2]
        local new = redis.call('XADD', S, '0-*', 'id', ARGV[2], 'body', ARGV[4])
        redis.call('XCLAIM', S, 'tollgate', owner, 0, new, 'FORCE', 'JUSTID', 'LASTID', new)
        redis.call('HSET', W, ARGV[2], new .. ' ' .. ARGV[3])";
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(2).arg("tollgate:{a}:spool").arg("tollgate:{a}:spool:words");
    command.arg(like.to_string()).arg(id.to_string()).arg(words).arg(body);
    command.exec(&mut redis.connection()).unwrap();
}

/// The words without the entry in the stream.
fn without_entry(words: &str) -> &str {
    words.split_once(' ').unwrap().1
}

/// Nothing is to be sent of a receipt, and a dead letter is an operator's.
#[tokio::test]
async fn only_queued_messages_count_as_not_allowed() {
    let redis = Redis::start();
    let owner = share_of(&redis, "a", CALM, None, options("/nowhere".as_ref())).await;
    let kept = ["q", "dead", "delivered"].map(|body| message("Payment", body));
    for message in &kept {
        owner.keep(message, None).await.unwrap();
    }
    owner.note(kept[1].id, Change::Dead(9, death())).await;
    owner.note(kept[2].id, Change::Delivered(1, receipt())).await;
    owner.close().await;
    let peer = Peer::start(&redis, adopting_by(allows("Alarm/*"))).await;
    peer.leaves(1, 0).await;
    assert_eq!(peer.ids(), []);
    // Any record that is not a receipt may be a forged one.
    let files = KeyFiles::new();
    let keys = with_mac(&files.write("keys", &[1]), Unsigned::SetAside);
    Peer::start(&redis, keys).await.leaves(0, 2).await;
}

/// A client of Redis gives records to a living sidecar. Its rules would not allow it to send the message.
#[tokio::test]
async fn what_is_given_to_a_living_sidecar_is_judged_by_its_rules() {
    let redis = Redis::start();
    let peer = Peer::start(&redis, adopting_by(allows("Alarm/*"))).await;
    let kept = message("Alarm/x", "x");
    peer.spool.keep(&kept, None).await.unwrap();
    let words = words_of(&redis, kept.id);
    let words = without_entry(&words);
    let [foreign, payment, allowed] = std::array::from_fn(|_| MessageId::new());
    plant(&redis, kept.id, foreign, &words.replace("post-cn-1", "post-cn-2"), b"f");
    plant(&redis, kept.id, payment, &words.replace("Alarm/x", "Payment"), b"p");
    plant(&redis, kept.id, allowed, words, b"a");
    plant(&redis, kept.id, "no id", words, b"n");
    let mut owners: Vec<String> = redis.connection().hkeys("tollgate:{a}:spool:owners").unwrap();
    let owner = owners.remove(0);
    let _: () = redis.connection().hset("tollgate:{a}:spool:owners", owner, "999").unwrap();
    peer.leaves(2, 1).await;
    peer.has(&[kept.id, allowed]).await;
    peer.spool.adopt_by(allows("Alarm/*, Payment"));
    peer.leaves(1, 1).await;
    peer.has(&[kept.id, payment, allowed]).await;
}

/// A client of Redis plants records under names, and with sizes, that no sidecar writes. They keep no
/// start, no command and no peer from the rest.
#[tokio::test]
async fn names_that_no_sidecar_writes_stop_nothing() {
    let (redis, folder) = (Redis::start(), tempfile::tempdir().unwrap());
    let before = share_in(&redis, "a", CALM, Some(folder.path())).await;
    let kept = message("TopicA", "x");
    before.keep(&kept, None).await.unwrap();
    let words = words_of(&redis, kept.id);
    let words = without_entry(&words);
    for name in [
        "0198ABCDEF0070008000000000000001",
        "0198abcd-ef00-7000-8000-000000000002",
        "{0198abcd-ef00-7000-8000-000000000003}",
        "no id",
    ] {
        plant(&redis, kept.id, name, words, b"x");
    }
    let json = words.split_once(' ').unwrap().1;
    plant(&redis, kept.id, MessageId::new(), &format!("many {json}"), b"x");
    before.settle().await;
    drop(before);
    let is_free = async || fs::File::open(folder.path().join("owner")).unwrap().try_lock().is_ok();
    until("the folder is free", is_free).await;
    let starts = share_in(&redis, "a", CALM, Some(folder.path()));
    let peer = Peer::of(timeout(BOUND, starts).await.expect("the start ends"));
    assert_eq!(peer.ids(), [kept.id]);
    peer.leaves(0, 5).await;
    peer.spool.close().await;
    let fleet = fleet(&redis, "a");
    let command = Spool::take_over(&fleet, options("/nowhere".as_ref()));
    let (spool, _) = timeout(BOUND, command).await.expect("the command ends").unwrap();
    assert!(spool.find(kept.id).is_some());
    spool.close().await;
    let shown = Spool::look(&fleet, options("/nowhere".as_ref())).await.unwrap();
    assert_eq!(shown.list(None, 9, &mut |_| true).len(), 1);
}

/// An entry in the stream that is not its message's own makes no second owner: neither of a dead sidecar's
/// nor of a living one's.
#[tokio::test]
async fn a_message_has_one_owner() {
    let redis = Redis::start();
    let start = async || Peer::start(&redis, options("/nowhere".as_ref())).await;
    let (one, two) = (start().await, start().await);
    let [kept, of_two] = ["x", "y"].map(|body| message("TopicA", body));
    one.spool.keep(&kept, None).await.unwrap();
    two.spool.keep(&of_two, None).await.unwrap();
    let own = words_of(&redis, kept.id);
    let twice = |like| {
        plant(&redis, like, kept.id, without_entry(&own), b"x");
        set_words(&redis, kept.id, &own);
    };
    twice(of_two.id);
    let given = MessageId::new();
    plant(&redis, of_two.id, given, without_entry(&own), b"z");
    for owner in redis.connection().hkeys::<_, Vec<String>>("tollgate:{a}:spool:owners").unwrap() {
        let _: () = redis.connection().hset("tollgate:{a}:spool:owners", owner, "999").unwrap();
    }
    until("it has read anew what it owns", async || two.ids().contains(&given)).await;
    assert!(!two.ids().contains(&kept.id));

    let dead = share_of(&redis, "a", CALM, None, options("/nowhere".as_ref())).await;
    let left = message("TopicA", "l");
    dead.keep(&left, None).await.unwrap();
    twice(left.id);
    one.spool.retire();
    dead.close().await;
    until("the other takes over", async || two.ids().contains(&left.id)).await;
    assert!(!two.ids().contains(&kept.id) && one.ids().contains(&kept.id));
}

#[tokio::test]
async fn keys_are_rotated_while_sidecars_run() {
    let (redis, files) = (Redis::start(), KeyFiles::new());
    let old = with_mac(&files.write("old", &[1]), Unsigned::SetAside);
    let by_old = left_by(&redis, old.clone(), &["TopicA"]).await.remove(0);
    // It does not know the old key, and then it does.
    let file = files.write("rotates", &[2]);
    let peer = Peer::start(&redis, with_mac(&file, Unsigned::SetAside)).await;
    peer.leaves(0, 1).await;
    files.write("rotates", &[2, 1]);
    peer.has(&[by_old.id]).await;
    peer.leaves(0, 0).await;
    // A file that is wrong takes no key away.
    let (log, _guard) = capture(Level::WARN);
    fs::write(&file, "nothing").unwrap();
    until("it is read again", async || log.text().contains("line 1 is not Base64")).await;
    let late = message("TopicA", "y");
    peer.spool.keep(&late, None).await.unwrap();
    assert_eq!(peer.spool.read(by_old.id).await.unwrap().message.payload, by_old.payload);
    peer.spool.close().await;
    // The new key has signed what was kept, and the old one what was not changed since.
    let new = with_mac(&files.write("new", &[2]), Unsigned::SetAside);
    let next = Peer::start(&redis, new).await;
    next.leaves(0, 1).await;
    assert_eq!(next.ids(), [late.id]);
    let last = Peer::start(&redis, old).await;
    last.has(&[by_old.id]).await;
}

#[tokio::test]
async fn what_no_sidecar_has_written_is_neither_sent_nor_deleted() {
    let (redis, files) = (Redis::start(), KeyFiles::new());
    let signs = with_mac(&files.write("keys", &[1]), Unsigned::SetAside);
    let kept = left_by(&redis, signs.clone(), &["TopicA"; 7]).await;
    let words: Vec<_> = kept.iter().map(|message| words_of(&redis, message.id)).collect();
    assert!(words.iter().all(|words| words.contains("\"mac\":")));
    // 0 stays. 1: another topic.
    set_words(&redis, kept[1].id, &words[1].replace("TopicA", "TopicB"));
    // 2: no MAC.
    let at = words[2].find(",\"mac\"").unwrap();
    set_words(&redis, kept[2].id, &format!("{}}}", &words[2][..at]));
    // 3: another body.
    plant(&redis, kept[0].id, kept[3].id, without_entry(&words[3]), b"other");
    // 4: the words of another message, with its MAC.
    let entry = words[4].split_once(' ').unwrap().0;
    set_words(&redis, kept[4].id, &format!("{entry} {}", without_entry(&words[0])));
    // 5 stays, and so does 6. One more has the MAC of another key.
    let old = with_mac(&files.write("other", &[9]), Unsigned::SetAside);
    let foreign = left_by(&redis, old, &["TopicA"]).await.remove(0);
    // The words of 6 under another id.
    let again = MessageId::new();
    plant(&redis, kept[0].id, again, without_entry(&words[6]), kept[6].payload.as_bytes());
    // Made without any key.
    let planted = MessageId::new();
    let unsigned =
        r#"90 {"instance":"post-cn-1","topic":"TopicA","kept_at":"2026-01-01T00:00:00Z"}"#;
    plant(&redis, kept[0].id, planted, unsigned, b"forged");

    let peer = Peer::start(&redis, signs).await;
    peer.leaves(0, 6).await;
    assert_eq!(peer.ids(), ids([&kept[0], &kept[3], &kept[5], &kept[6]]));
    for message in [&kept[0], &kept[5], &kept[6]] {
        let read = peer.spool.read(message.id).await.unwrap().message;
        assert_eq!((read.payload, read.topic), (message.payload.clone(), message.topic.clone()));
    }
    assert_eq!(peer.spool.read(kept[3].id).await.unwrap_err(), ReadError::Unverified);
    assert_eq!(peer.spool.find(kept[3].id).unwrap().attempts, 0, "it is not deleted");
    // They are there for an operator, who looks without keys.
    let all = Spool::look(&fleet(&redis, "a"), options("/nowhere".as_ref())).await.unwrap();
    for id in [kept[1].id, kept[2].id, kept[4].id, foreign.id, again, planted] {
        assert!(all.find(id).is_some(), "{id}");
    }
}

/// A client of Redis gives a record to a living sidecar, and has it read anew what it owns.
#[tokio::test]
async fn what_is_given_to_a_living_sidecar_is_not_trusted_either() {
    let (redis, files) = (Redis::start(), KeyFiles::new());
    let signs = with_mac(&files.write("keys", &[1]), Unsigned::SetAside);
    let peer = Peer::start(&redis, signs).await;
    let kept = message("TopicA", "x");
    peer.spool.keep(&kept, None).await.unwrap();
    let planted = MessageId::new();
    let unsigned =
        r#"90 {"instance":"post-cn-1","topic":"TopicA","kept_at":"2026-01-01T00:00:00Z"}"#;
    plant(&redis, kept.id, planted, unsigned, b"forged");
    let own = words_of(&redis, kept.id);
    let mut owners: Vec<String> = redis.connection().hkeys("tollgate:{a}:spool:owners").unwrap();
    let owner = owners.remove(0);
    let _: () = redis.connection().hset("tollgate:{a}:spool:owners", owner, "999").unwrap();
    peer.leaves(0, 1).await;
    assert_eq!(peer.ids(), [kept.id]);
    assert_eq!(words_of(&redis, kept.id), own);
}

/// A client of Redis saves a record, and puts it back when its message was delivered.
#[tokio::test]
async fn an_old_record_of_a_message_that_has_ended() {
    let (redis, files) = (Redis::start(), KeyFiles::new());
    let signs = with_mac(&files.write("keys", &[1]), Unsigned::SetAside);
    let peer = Peer::start(&redis, signs.clone()).await;
    let kept = message("TopicA", "x");
    peer.spool.keep(&kept, None).await.unwrap();
    let saved = words_of(&redis, kept.id);
    peer.spool.note(kept.id, Change::Delivered(1, receipt())).await;
    let other = share_of(&redis, "a", CALM, None, signs).await;
    let decoy = message("TopicA", "y");
    other.keep(&decoy, None).await.unwrap();
    plant(&redis, decoy.id, kept.id, without_entry(&saved), b"x");
    other.close().await;
    until("it has taken the other", async || peer.spool.find(decoy.id).is_some()).await;
    assert!(matches!(peer.spool.find(kept.id).unwrap().state, State::Delivered(_)));
    peer.spool.flush().await;
    assert!(words_of(&redis, kept.id).contains("\"receipt\":"), "Redis has it again");
}

/// Its connections end more often than the file is read.
#[tokio::test]
async fn keys_are_read_again_whatever_becomes_of_connections() {
    let (redis, files) = (Redis::start(), KeyFiles::new());
    let file = files.write("keys", &[1]);
    let (log, _guard) = capture(Level::INFO);
    let _peer = Peer::start(&redis, with_mac(&file, Unsigned::SetAside)).await;
    files.write("keys", &[2, 1]);
    until("it is read again", async || {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("normal");
        kill.exec(&mut redis.connection()).unwrap();
        log.text().contains("the keys in spool.mac_file have changed")
    })
    .await;
}

/// First all sign, then what is not signed is set aside.
#[tokio::test]
async fn macs_are_rolled_out_in_two_steps() {
    let (redis, files) = (Redis::start(), KeyFiles::new());
    let none = options("/nowhere".as_ref());
    let keys = files.write("keys", &[1]);
    let first = with_mac(&keys, Unsigned::Sent);
    let kept = left_by(&redis, none.clone(), &["TopicA", "TopicB"]).await;
    let last = Peer::start(&redis, with_mac(&keys, Unsigned::SetAside)).await;
    last.leaves(0, 2).await;
    let signs = Peer::start(&redis, first.clone()).await;
    signs.has(&ids(&kept)).await;
    last.leaves(0, 0).await;
    // Its words get a MAC now, and it still knows nothing of the body: it is as if not signed.
    signs.spool.note(kept[0].id, Change::Tried(1.into())).await;
    assert!(words_of(&redis, kept[0].id).contains("\"mac\":"));
    assert_eq!(signs.spool.read(kept[0].id).await.unwrap().message.payload, kept[0].payload);
    let signed = message("TopicA", "signed");
    signs.spool.keep(&signed, None).await.unwrap();
    // Delivered: what is left has no body, and is signed.
    signs.spool.note(kept[1].id, Change::Delivered(1, receipt())).await;
    signs.spool.close().await;
    last.leaves(0, 1).await;
    assert_eq!(last.ids(), [kept[1].id, signed.id]);
    // A sidecar that has no keys yet reads what others have signed.
    last.spool.close().await;
    let older = Peer::start(&redis, none).await;
    until("it has all", async || older.ids().len() == 3).await;
    assert_eq!(older.spool.read(signed.id).await.unwrap().message.payload, signed.payload);
    older.spool.close().await;
    // A wrong MAC is no missing one.
    let words = words_of(&redis, signed.id);
    set_words(&redis, signed.id, &words.replace("TopicA", "TopicB"));
    let again = Peer::start(&redis, first).await;
    again.leaves(0, 1).await;
    assert_eq!(again.ids(), ids(&kept));
}

#[tokio::test]
async fn a_file_without_keys_is_an_error_of_the_start() {
    let (redis, files) = (Redis::start(), KeyFiles::new());
    let short = files.0.path().join("short");
    fs::write(&short, "c2hvcnQ=\n").unwrap();
    let missing = files.0.path().join("missing");
    for (path, why) in [(&short, "line 1 has a key of fewer than 32 bytes"), (&missing, "No such")]
    {
        let options = with_mac(path, Unsigned::SetAside);
        let error = Spool::share(&fleet(&redis, "a"), None, options).await.unwrap_err();
        assert!(matches!(error, OpenError::MacFile { .. }), "{error:?}");
        let text = format!("{error}; {}", error.remedy());
        assert!(text.contains("spool.mac_file") && text.contains(why), "{text}");
        assert!(!text.contains("c2hvcnQ"), "{text}");
    }
    let options = with_mac(&files.write("keys", &[0x41]), Unsigned::SetAside);
    let spool = share_of(&redis, "a", CALM, None, options).await;
    let text = format!("{spool:?}");
    assert!(!text.contains("65, 65") && !text.contains("QUFB"), "{text}");
}
