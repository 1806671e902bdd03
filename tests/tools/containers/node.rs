//! A node without a cluster: containerd and runc run the packed image, a CNI plugin gives each pod a network of
//! IPv6 alone, and the test does what a kubelet does. Each node has its own containerd, in a folder of its own.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::support::http::BOUND;
use crate::support::manifests::root;
use crate::support::secrets::{SearchedNow as _, Secrets, search};

/// A network of one test, beside those of others (RFC 4193).
const SUBNET: &str = "fd00:7011:6a7e";
/// The image's user.
const USER: u32 = 65_532;
/// What containerd grants by default, and `drop: [ALL]` takes away.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A containerd with the image.
pub(super) struct Node {
    folder: tempfile::TempDir,
    containerd: Child,
    next: Cell<u16>,
}

/// Runs a program that `tests/setup.sh` installs.
fn output(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .searched_now()
        .unwrap_or_else(|error| panic!("{name}: {error}: run tests/setup.sh"))
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

fn tried(command: &mut Command) -> Result<String, String> {
    let output = output(command);
    let text = text(&output);
    if output.status.success() { Ok(text) } else { Err(format!("{command:?}: {text}")) }
}

fn done(command: &mut Command) -> String {
    tried(command).unwrap_or_else(|why| panic!("{why}"))
}

impl Node {
    /// Starts one, and tries a container on it. An error says why this machine runs none.
    pub(super) async fn start() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root runs containers".to_owned());
        }
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            return Err("it has no IPv6".to_owned());
        }
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        std::fs::set_permissions(at, Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{0}/containerd.sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{0}/opt\"\n",
            at.display()
        );
        std::fs::write(at.join("config.toml"), config).unwrap();
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(at.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(at.join("log")).unwrap())
            .spawn()
            .expect("containerd is missing: run tests/setup.sh");
        let node = Self { folder, containerd, next: Cell::new(1) };
        let begun = Instant::now();
        while !output(node.ctr().arg("version")).status.success() {
            if begun.elapsed() > BOUND {
                let log = std::fs::read_to_string(node.folder.path().join("log")).unwrap();
                return Err(format!("containerd does not start: {}", last_line(&log)));
            }
            sleep(Duration::from_millis(20)).await;
        }
        let image = node.folder.path().join("image.tar");
        done(
            Command::new(root().join("deploy/image/pack.sh"))
                .arg(&image)
                .arg(env!("CARGO_BIN_EXE_tollgate"))
                .env("TOLLGATE_IMAGE_FOR_TESTS", "1"),
        );
        done(node.ctr().args(["image", "import"]).arg(&image));
        let mut tried = node.ctr();
        tried.args(["run", "--rm", "--read-only", "tollgate:0.1.0", "try"]);
        let tried = output(tried.args(["/usr/bin/tollgate", "--version"]));
        if !tried.status.success() {
            return Err(format!("a container does not run: {}", last_line(&text(&tried))));
        }
        node.try_pod()
            .map(drop)
            .map_err(|why| format!("a pod gets no network: {}", last_line(&why)))?;
        Ok(node)
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.folder.path().join("containerd.sock"));
        ctr.args(["--namespace", "tests"]);
        ctr
    }

    /// A name that nothing else on this machine has.
    fn name(&self, what: &str) -> String {
        let n = self.next.get();
        self.next.set(n + 1);
        format!("tg{}-{what}{n}", std::process::id())
    }

    /// A folder that is the containers' to write: an emptyDir, or a claim.
    pub(super) fn volume(&self, what: &str) -> PathBuf {
        let path = self.folder.path().join(self.name(what));
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    /// A file system of this size. Unmounted with its guard.
    pub(super) fn small_volume(&self, size: &str) -> Mounted {
        let path = self.volume("small");
        let options = format!("size={size},uid={USER},gid={USER},mode=0755");
        done(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path));
        Mounted(path)
    }

    /// A pod with its network.
    pub(super) fn pod(&self) -> Pod<'_> {
        self.try_pod().unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_pod(&self) -> Result<Pod<'_>, String> {
        let name = self.name("pod");
        tried(Command::new("ip").args(["netns", "add", &name]))?;
        let mut pod = Pod { node: self, name, address: String::new() };
        tried(Command::new("ip").args(["-n", &pod.name, "link", "set", "lo", "up"]))?;
        let result: Value = serde_json::from_str(&pod.plugin("ADD")?).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
        address.clone_into(&mut pod.address);
        Ok(pod)
    }

    /// Where pods reach the machine.
    pub(super) fn gateway() -> String {
        format!("[{}::1]", subnet())
    }
}

/// The flags of `drop: [ALL]`.
pub(super) fn no_capabilities() -> impl Iterator<Item = String> {
    CAPABILITIES.into_iter().flat_map(|name| ["--cap-drop".to_owned(), name.to_owned()])
}

/// A mount of a folder, `rw` or `ro`.
pub(super) fn bind(from: &Path, to: &str, mode: &str) -> String {
    format!("type=bind,src={},dst={to},options=rbind:{mode}", from.display())
}

/// Tests of one machine at the same time have other networks.
fn subnet() -> String {
    format!("{SUBNET}:{:x}", std::process::id() % 0xffff)
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing")
}

impl Drop for Node {
    /// Shims outlive their containerd, and its mounts outlive both.
    fn drop(&mut self) {
        let tasks = self.ctr().args(["task", "ls", "-q"]).searched_now();
        for id in
            tasks.iter().flat_map(|tasks| std::str::from_utf8(&tasks.stdout)).flat_map(str::lines)
        {
            drop(self.ctr().args(["task", "rm", "--force", id]).searched_now());
        }
        drop(self.containerd.kill());
        drop(self.containerd.wait());
    }
}

/// A mounted file system.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

/// What the containers of a pod share: an address, and a loopback.
pub(super) struct Pod<'a> {
    node: &'a Node,
    name: String,
    address: String,
}

impl Pod<'_> {
    fn plugin(&self, verb: &str) -> Result<String, String> {
        let config = json!({
            "cniVersion": "0.4.0", "name": "tollgate", "type": "ptp", "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": self.node.folder.path().join("addresses"),
                "ranges": [[{"subnet": format!("{}::/64", subnet())}]],
                "routes": [{"dst": "::/0"}],
            },
        });
        let mut plugin = Command::new("/usr/lib/cni/ptp")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.name)
            .env("CNI_NETNS", format!("/var/run/netns/{}", self.name))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the CNI plugins are missing: run tests/setup.sh");
        plugin.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let said = plugin.wait_with_output().unwrap();
        search(&said);
        if !said.status.success() {
            return Err(format!("ptp {verb}: {}", text(&said)));
        }
        Ok(String::from_utf8(said.stdout).unwrap())
    }

    /// Runs the image with these words in the restricted profile: its user, no capability, the runtime's seccomp
    /// profile, a read-only root, limits of memory and CPU, and `spool` as its volume.
    pub(super) fn run(
        &self,
        spool: &Path,
        settings: &[(&str, &str)],
        args: &[&str],
    ) -> Container<'_> {
        let mut flags = vec!["--read-only".to_owned(), "--seccomp".to_owned()];
        flags.extend(no_capabilities());
        let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
        flag("--memory-limit", (128 << 20).to_string());
        flag("--cpus", "1".to_owned());
        let run = self.node.volume("run");
        for (from, to) in [(spool, "/var/lib/tollgate"), (&run, "/run/tollgate")] {
            flag("--mount", bind(from, to, "rw"));
        }
        for set in
            ["ALIBABA_CLOUD_ACCESS_KEY_ID=testid", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=testsecret"]
        {
            flag("--env", set.to_owned());
        }
        for (key, value) in settings {
            let name = key.to_ascii_uppercase().replace('.', "__");
            flag("--env", format!("TOLLGATE__{name}={value}"));
        }
        self.start(&flags, args)
    }

    /// Runs the image with these words and these flags of `ctr run`.
    pub(super) fn start<W: AsRef<OsStr>>(&self, flags: &[String], args: &[W]) -> Container<'_> {
        let id = self.node.name("container");
        let log = self.node.folder.path().join(format!("{id}.log"));
        let file = File::create(&log).unwrap();
        let mut ctr = self.node.ctr();
        ctr.args(["run", "--rm"]);
        // As a kubelet's runtime does: there a process finds its limits.
        let groups = "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev";
        ctr.args(["--mount", groups]);
        ctr.arg("--with-ns").arg(format!("network:/var/run/netns/{}", self.name));
        ctr.args(flags).args(["tollgate:0.1.0", &id, "/usr/bin/tollgate"]).args(args);
        let child = ctr
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Container { pod: self, id, child, log, publish: self.at(8080), telemetry: self.at(9464) }
    }

    /// The address of a port, from outside.
    pub(super) fn at(&self, port: u64) -> String {
        format!("[{}]:{port}", self.address)
    }

    /// Runs a program of the machine in the pod's network, as its app.
    pub(super) fn app(&self, words: &[&str]) -> Output {
        output(Command::new("ip").args(["netns", "exec", &self.name]).args(words))
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        drop(self.plugin("DEL"));
        drop(Command::new("ip").args(["netns", "del", &self.name]).status());
    }
}

/// A container, from its start on.
pub(super) struct Container<'a> {
    pod: &'a Pod<'a>,
    id: String,
    /// `ctr`, which ends as the container does.
    child: Child,
    log: PathBuf,
    pub(super) publish: String,
    pub(super) telemetry: String,
}

impl Container<'_> {
    pub(super) fn log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap();
        Secrets::default().assert_unseen(&log);
        log
    }

    /// Its first process, as the machine numbers it.
    pub(super) fn pid(&self) -> i32 {
        let list = done(self.pod.node.ctr().args(["task", "ls"]));
        let mut lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|words| words.first() == Some(&&*self.id));
        line.unwrap_or_else(|| panic!("{} is gone:\n{}", self.id, self.log()))[1].parse().unwrap()
    }

    /// Whether it has ended by itself.
    pub(super) fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What `kubectl exec` runs.
    pub(super) fn exec(&self, words: &[String]) -> Output {
        let name = self.pod.node.name("exec");
        output(self.pod.node.ctr().args(["task", "exec", "--exec-id", &name, &self.id]).args(words))
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Waits for its end, and returns its exit code.
    pub(super) async fn ended(mut self, within: Duration) -> Option<Ended> {
        let ended = timeout(within, async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code().unwrap_or(-1);
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        let code = ended.await.ok();
        if code.is_none() {
            self.signal(Signal::KILL);
            self.child.wait().unwrap();
        }
        code.map(|code| Ended { code, log: self.log() })
    }

    /// As a kubelet stops a container: SIGTERM, and SIGKILL after the grace. `None`: it was killed.
    pub(super) async fn stop(self, grace: Duration) -> Option<Ended> {
        self.signal(Signal::TERM);
        self.ended(grace).await
    }
}

/// How a container ended.
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) log: String,
}

/// A control group's file of a process.
pub(super) fn cgroup(pid: i32, controller: &str) -> PathBuf {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut lines = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    // Version 1 has a hierarchy a controller; version 2 has one, without a name.
    let found = lines.find(|line| line[1].split(',').any(|name| name == controller));
    if let Some(line) = found {
        return Path::new("/sys/fs/cgroup").join(controller).join(&line[2][1..]);
    }
    let line = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    Path::new("/sys/fs/cgroup").join(line)
}
