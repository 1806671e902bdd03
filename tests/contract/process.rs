//! The process and its files, as its operator and its neighbours on the machine see them.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::support::http::{BOUND, get, post, series};
use crate::support::ports::{free_port, refusing};
use crate::support::process::{Serve, Watched, run};
use rustix::process::Signal;

const KEY: [(&str, &str); 2] =
    [("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret")];

/// `tollgate serve` from its first line on.
fn starting(settings: &[(&str, &str)]) -> Watched {
    let flags = arguments(settings);
    let args: Vec<_> = flags.iter().map(String::as_str).collect();
    Watched::start(&args, &KEY)
}

fn arguments(settings: &[(&str, &str)]) -> Vec<String> {
    let base = [
        ("listen.publish", "127.0.0.1:0"),
        ("listen.telemetry", "127.0.0.1:0"),
        ("listen.control", "none"),
        ("upstream.endpoint", "http://127.0.0.1:1"),
        ("upstream.instance_id", "i"),
    ];
    let flags = base.iter().chain(settings).map(|(key, value)| format!("--set={key}={value}"));
    std::iter::once("serve".to_owned()).chain(flags).collect()
}

/// What a process that has the spool holds.
fn locked(spool: &Path) -> File {
    std::fs::create_dir_all(spool).unwrap();
    let lock = File::create(spool.join("lock")).unwrap();
    lock.try_lock().unwrap();
    lock
}

/// A replacement that starts before its predecessor has ended waits as long as that may take.
#[tokio::test]
async fn a_replacement_waits_for_its_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    let lock = locked(folder.path());
    let telemetry = format!("127.0.0.1:{}", free_port());
    let path = folder.path().display().to_string();
    let settings =
        [("spool.path", &*path), ("listen.telemetry", &*telemetry), ("drain.grace", "1h")];
    let serve = starting(&settings);
    serve.says("waiting for the other process to end").await;
    assert_eq!(get(&telemetry, "/livez").await.status, 200);
    for path in ["/readyz", "/startupz", "/metrics"] {
        assert_eq!(get(&telemetry, path).await.status, 503, "{path}");
    }

    // What reads a stopped sidecar's spool has no predecessor: it waits half a second.
    let list = ["messages", "list", "--set=upstream.instance_id=i", "--set=listen.control=none"];
    let begun = tokio::time::Instant::now();
    let said = run(&[&list[..], &[&format!("--set=spool.path={path}")]].concat(), &[]).await;
    assert!(said.code == 1 && said.stderr.contains("another process holds"), "{}", said.stderr);
    assert!(begun.elapsed() < Duration::from_mins(1));

    drop(lock);
    serve.says("tollgate is serving").await;
    assert_eq!(get(&telemetry, "/readyz").await.status, 200);
}

#[tokio::test]
async fn sigterm_ends_the_wait_for_a_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    let _lock = locked(folder.path());
    let path = folder.path().display().to_string();
    let mut serve = starting(&[("spool.path", &*path), ("drain.grace", "1h")]);
    serve.says("waiting for the other process to end").await;
    serve.signal(Signal::TERM);
    serve.says("stopped before the start").await;
    let status = serve.ended(BOUND).await;
    assert_eq!(status.code(), Some(0));
}

/// A path that is wrong by a letter costs no file.
#[tokio::test]
async fn what_is_not_a_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (file, directory) = (folder.path().join("a-file"), folder.path().join("a-folder"));
    std::fs::write(&file, "precious").unwrap();
    std::fs::create_dir(&directory).unwrap();
    for (path, kind) in [(&file, "a file"), (&directory, "a folder")] {
        let address = format!("unix:{}", path.display());
        for key in ["listen.publish", "listen.control"] {
            let flags = arguments(&[(key, &address), ("spool.store", "none")]);
            let args: Vec<_> = flags.iter().map(String::as_str).collect();
            let said = run(&args, &KEY).await;
            let reason =
                format!("cannot listen at {address}: there is {kind} that is not a socket");
            assert!(said.code == 1 && said.stderr.contains(&reason), "{key}: {}", said.stderr);
        }
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(directory.is_dir());
}

/// A socket whose process was killed is replaced, and one that has a successor's socket at its path leaves it.
#[tokio::test]
async fn a_socket_is_replaced_and_left_to_its_successor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("publish.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let address = format!("unix:{}", path.display());
    let settings = [("listen.publish", &*address), ("spool.store", "none")];
    let mut first = starting(&settings);
    first.says("tollgate is serving").await;
    std::fs::remove_file(&path).unwrap();
    let mut next = starting(&settings);
    next.says("tollgate is serving").await;
    first.signal(Signal::TERM);
    first.ended(BOUND).await;
    assert!(path.exists());
    next.signal(Signal::TERM);
    next.ended(BOUND).await;
    assert!(!path.exists());
}

/// What others of the machine may read does not depend on the umask.
#[tokio::test]
async fn files_are_this_users_alone() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    // An older version created it under the umask.
    std::fs::create_dir_all(spool.join("ledger")).unwrap();
    std::fs::write(spool.join("ledger/ledger.redb"), "").unwrap();
    let everyone = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(spool.join("ledger/ledger.redb"), everyone).unwrap();
    let path = spool.display().to_string();
    let (_refusing, redis) = refusing();
    let url = format!("redis://{redis}");
    let disk = [("spool.path", &*path), ("spool.store", "disk")];
    let shared = [("spool.path", &*path), ("spool.store", "redis"), ("fleet.url", &*url)];
    for (settings, files) in [
        (&disk[..], &["lock", "ledger/ledger.redb", "ledger/hot"][..]),
        (&shared, &["owner", "ledger/ledger.redb"]),
    ] {
        let upstream = [("upstream.endpoint", "http://127.0.0.1:1")];
        let serve = Serve::start_under("umask 000", &[&upstream, settings].concat()).await;
        if files.contains(&"lock") {
            let prefer = [("prefer", "respond-async")];
            assert_eq!(post(&serve.publish, "/publish/TopicA", &prefer, b"x").await.status, 202);
            let segment = |entry: std::io::Result<std::fs::DirEntry>| {
                let path = entry.unwrap().path();
                path.extension().is_some_and(|e| e == "log").then_some(path)
            };
            let segments: Vec<_> = std::fs::read_dir(&spool).unwrap().filter_map(segment).collect();
            assert!(!segments.is_empty());
            assert!(segments.iter().all(|segment| mode(segment) == 0o600));
        }
        for file in files {
            assert_eq!(mode(&spool.join(file)), 0o600, "{file}");
        }
        serve.signal(Signal::TERM);
        assert!(serve.ended().await.0.success());
        // As a new one does.
        drop(std::fs::remove_dir_all(&spool));
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

/// The access key is in the process's memory.
#[tokio::test]
async fn no_one_else_reads_the_memory() {
    // Root owns the files of each process: another user's tell whether it may be dumped.
    let is_root = rustix::process::geteuid().is_root();
    let before = if is_root {
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$0\" \"$@\""
    } else {
        "true"
    };
    let settings = [("upstream.endpoint", "http://127.0.0.1:1")];
    let serve = Serve::start_under(before, &settings).await;
    let process = format!("/proc/{}", serve.pid());
    let limits = std::fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let core: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(core, ["0", "0"]);
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let user = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(!user.contains("\t0\t"), "{user}");
    assert_eq!(std::fs::metadata(format!("{process}/mem")).unwrap().uid(), 0);
    // It still reads its own figures.
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    assert!(series(&metrics, "process_open_fds") > 0.0, "{metrics}");
    assert!(series(&metrics, "process_resident_memory_bytes") > 0.0, "{metrics}");
}

/// Every address of the machine, of both families.
#[tokio::test]
async fn all_addresses_of_both_families() {
    let settings = [
        ("upstream.endpoint", "http://127.0.0.1:1"),
        ("listen.publish", "[::]:0"),
        ("listen.telemetry", "[::]:0"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
    // A machine without IPv6 has those of IPv4.
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    for host in ["127.0.0.1", "[::1]"].into_iter().take(if has_ipv6 { 2 } else { 1 }) {
        let telemetry = format!("{host}:{}", port(&serve.telemetry));
        assert_eq!(get(&telemetry, "/livez").await.status, 200, "{telemetry}");
        let publish = format!("{host}:{}", port(&serve.publish));
        assert_eq!(get(&publish, "/nothing").await.status, 404, "{publish}");
    }
}
