//! A sidecar that gets no thread more: the pod has as many processes as it may have (`pids.max`).

use std::path::Path;
use std::time::Duration;

use super::drills::{FAILS, Provider, accepts, serve, started};
use super::node::{Container, Pod, cgroup};

/// A sidecar that is left alone, as long as threads may take to end that have nothing to do.
pub(super) struct Idle<'a> {
    provider: Provider,
    container: Container<'a>,
}

pub(super) async fn idle<'a>(pod: &'a Pod<'_>, volume: &Path) -> Idle<'a> {
    let provider = Provider::start(FAILS).await;
    let container = serve(pod, &provider, volume, &[("runtime.threads", "1")]);
    started(&container).await;
    Idle { provider, container }
}

impl Idle<'_> {
    /// It keeps messages, and delivers them.
    pub(super) async fn gets_no_thread(self) {
        let Self { provider, container } = self;
        let group = cgroup(container.pid(), "pids");
        std::fs::write(group.join("pids.max"), "1").unwrap();
        let (bodies, promise) = accepts(&container, 50).await;
        assert_eq!(promise, "disk");
        provider.gets(&bodies).await;
        let ended = container.stop(Duration::from_mins(1)).await.expect("it ends in its grace");
        assert_eq!(ended.code, 0, "{}", ended.log);
    }
}
