//! The memory that the process may use, as the system has it.

use std::path::Path;

/// The smallest limit of the control groups that this process is in, or else the machine's memory. In bytes.
pub fn limit() -> u64 {
    let machine = rustix::system::sysinfo();
    let machine = (machine.totalram as u64).saturating_mul(machine.mem_unit.into());
    smallest_in(Path::new("/")).map_or(machine, |group| group.min(machine))
}

/// As the kernel documents it in `cgroup-v1/memory.rst` and `cgroup-v2.rst`. A container sees its own group at
/// the top, or, without a namespace of its own, below the path that it is told: all ancestors are read.
fn smallest_in(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next(), fields.next(), fields.next());
        let (mount, file) = match (id, controllers) {
            (Some("0"), Some("")) => ("sys/fs/cgroup", "memory.max"),
            (_, Some(names)) if names.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let path = Path::new(path.unwrap_or_default().trim_start_matches('/'));
        let folders = path.ancestors().map(|group| root.join(mount).join(group).join(file));
        folders.collect()
    });
    // "max" is no limit, as is version 1's largest number, which no machine has.
    let limits = limits.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_all_groups() {
        let own = "proc/self/cgroup";
        for (name, files, limit) in [
            (
                "a container with a namespace of its own",
                &[(own, "0::/\n"), ("sys/fs/cgroup/memory.max", "134217728\n")][..],
                Some(134_217_728),
            ),
            (
                "a unit of systemd, whose parent is smaller",
                &[
                    (own, "0::/system.slice/tollgate.service\n"),
                    ("sys/fs/cgroup/system.slice/memory.max", "1000\n"),
                    ("sys/fs/cgroup/system.slice/tollgate.service/memory.max", "max\n"),
                ],
                Some(1_000),
            ),
            (
                "version 1, as a container without a namespace sees it",
                &[
                    (own, "5:cpu,cpuacct:/kubepods/x\n4:memory:/kubepods/x\n0::/\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n"),
                ],
                Some(2_000),
            ),
            (
                "version 1 beside another controller",
                &[
                    (own, "4:hugetlb,memory:/a/b\n"),
                    ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "3000\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(3_000),
            ),
            ("no limit", &[(own, "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")], None),
            ("what is no list of groups", &[(own, "0\n::\nx:memory\n4:memory:\n\u{0}\n")], None),
            ("no groups", &[], None),
        ] {
            assert_eq!(smallest_in(system(files).path()), limit, "{name}");
        }
    }

    #[test]
    fn there_is_always_one() {
        assert!(limit() > 1 << 20);
    }
}
