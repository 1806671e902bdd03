//! Real redis-servers. `tests/setup.sh` installs them. `TOLLGATE_TEST_REDIS=valkey-server` names another.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]
#![allow(clippy::disallowed_methods, reason = "it also serves tests without a runtime")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::ports::free_port;

const SCRIPT: &str = include_str!("../../src/ceiling/permits.lua");

/// A server that ends with its test, and keeps nothing.
pub struct Redis {
    pub port: u16,
    args: Vec<String>,
    process: Child,
    folder: tempfile::TempDir,
}

/// The keys of the account's ceiling, or of an egress group's.
pub fn keys(ceiling: &str) -> [String; 4] {
    ["", ":state", ":parked", ":out"].map(|part| format!("tollgate:{{default}}:{ceiling}{part}"))
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments.
    pub fn start_with(args: &[&str]) -> Self {
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let process = spawn(port, folder.path(), &args);
        let redis = Self { port, args, process, folder };
        redis.answers();
        redis
    }

    /// One that watches over the primary on this port, under the name `main`, alone; with more lines of
    /// configuration. A primary that only stands still for a moment stays the primary.
    pub fn sentinel(of: u16, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "sentinel monitor main 127.0.0.1 {of} 1\n\
             sentinel down-after-milliseconds main 4000\n\
             sentinel failover-timeout main 4000\n{more}\n"
        );
        std::fs::write(&file, text).unwrap();
        let port = free_port();
        let mut command = program();
        command.arg(&file).arg("--sentinel").arg("--port").arg(port.to_string());
        let process = start(command.args(["--bind", "127.0.0.1"]));
        let redis = Self { port, args: Vec::new(), process, folder };
        redis.answers();
        redis
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Says this to it, words apart by spaces.
    pub fn tell<T: redis::FromRedisValue>(&self, words: &str) -> T {
        self.try_tell(words).unwrap()
    }

    fn try_tell<T: redis::FromRedisValue>(&self, words: &str) -> redis::RedisResult<T> {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        command.query(&mut redis::Client::open(self.url())?.get_connection()?)
    }

    /// Lets these ceilings begin a lease ago, with no permit out, so that nobody waits for leases that
    /// nobody has.
    pub fn begin(&self, ceilings: &[(&str, u64)]) {
        let past = SCRIPT.replace("redis.call('TIME')", "{ redis.call('TIME')[1] - 31, 0 }");
        let figures: Vec<_> = ceilings.iter().map(|(_, figure)| figure.to_string()).collect();
        let all: Vec<_> = ceilings.iter().flat_map(|(name, _)| keys(name)).collect();
        let mut command = redis::cmd("EVAL");
        command.arg(past).arg(all.len()).arg(all).arg(figures.join(",")).arg([0; 7].as_slice());
        let mut connection = self.connection();
        command.exec(&mut connection).unwrap();
        for (name, figure) in ceilings {
            let [permits, _, _, out] = keys(name);
            let mut rest = redis::pipe();
            for id in 0..*figure {
                rest.zadd(&permits, id, 1);
            }
            rest.del(out).exec(&mut connection).unwrap();
        }
    }

    /// Asks for so many permits of the account's ceiling. How many there are, and for how long, in
    /// microseconds, it still learns which are out.
    pub fn ask(&self, ceiling: u64, want: usize) -> (usize, u64) {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(4).arg(&keys("account")).arg(ceiling).arg(want);
        command.arg([0; 6].as_slice());
        let said: Vec<redis::Value> = command.query(&mut self.connection()).unwrap();
        let out: Vec<String> = redis::from_redis_value(said.last().unwrap().clone()).unwrap();
        (out.len(), redis::from_redis_value(said[1].clone()).unwrap())
    }

    /// How many connections it has beside the one that asks.
    pub fn clients(&self) -> usize {
        let list: String = self.tell("CLIENT LIST TYPE normal");
        list.lines().count() - 1
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Back on the same port, empty.
    pub fn restart(&mut self) {
        self.process = spawn(self.port, self.folder.path(), &self.args);
        self.answers();
    }

    /// Waits until this is in what it says of itself. A Sentinel that makes another the primary ends all
    /// connections, this one among them.
    pub fn says(&self, words: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let said = self.try_tell::<String>("INFO");
            if said.as_ref().is_ok_and(|said| said.contains(words)) {
                return;
            }
            assert!(Instant::now() < end, "{words} is not in {said:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn answers(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        let client = redis::Client::open(self.url()).unwrap();
        while client.get_connection().is_err() {
            assert!(Instant::now() < end, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The server to start.
pub fn program() -> Command {
    let named = std::env::var_os("TOLLGATE_TEST_REDIS");
    Command::new(named.unwrap_or_else(|| "redis-server".into()))
}

fn spawn(port: u16, folder: &std::path::Path, args: &[String]) -> Child {
    let mut command = program();
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]);
    start(command.arg(port.to_string()).arg("--dir").arg(folder).args(args))
}

fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is missing: run tests/setup.sh")
}

/// Nodes of one Cluster, each with a third of the slots, and a replica of the one with the fleet's
/// keys, last.
pub struct Cluster {
    pub nodes: Vec<Redis>,
    /// Which has them.
    pub owner: usize,
}

impl Cluster {
    pub fn start() -> Self {
        // Known before, since other nodes are told of it. A node that stands still for a moment is not to
        // be taken for dead.
        let node = |_| {
            let bus = free_port().to_string();
            let cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", "6000"];
            let more = ["--cluster-port", &bus];
            Redis::start_with(&[&cluster[..], &more[..]].concat())
        };
        let nodes: Vec<_> = (0..4).map(node).collect();
        for (node, slots) in nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
            node.tell::<()>(&format!("CLUSTER ADDSLOTSRANGE {slots}"));
        }
        for node in &nodes[1..] {
            let bus = &node.args[5];
            nodes[0].tell::<()>(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", node.port));
        }
        for node in &nodes {
            let end = Instant::now() + Duration::from_secs(30);
            while node.tell::<String>("CLUSTER NODES").matches("connected").count() < 4 {
                assert!(Instant::now() < end, "{}", node.tell::<String>("CLUSTER NODES"));
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let slot: usize = nodes[0].tell(&format!("CLUSTER KEYSLOT {}", keys("account")[0]));
        let owner = slot / 5461;
        let id: String = nodes[owner].tell("CLUSTER MYID");
        nodes[3].tell::<()>(&format!("CLUSTER REPLICATE {id}"));
        nodes[3].says("master_link_status:up");
        let end = Instant::now() + Duration::from_secs(30);
        while !nodes.iter().all(|n| n.tell::<String>("CLUSTER INFO").contains("cluster_state:ok")) {
            assert!(Instant::now() < end, "the Cluster is not whole");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { nodes, owner }
    }
}
