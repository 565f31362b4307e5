//! Whether the kernel's OOM killer was at work: a child killed by SIGKILL says nothing of it itself.

use std::path::{Path, PathBuf};

/// Compares the kernel's counts of OOM kills with those of the last look.
#[derive(Debug)]
pub(crate) struct OomWatch {
    /// Of the cgroup that the launcher and its children are in; `None` without cgroup v2.
    cgroup: Option<PathBuf>,
    in_cgroup: u64,
    on_host: u64,
}

impl OomWatch {
    /// Starts to watch.
    pub(crate) fn start() -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let path = own.lines().find_map(|line| line.strip_prefix("0::"));
        let cgroup = path.map(|path| Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')));
        let mut watch = Self { cgroup, in_cgroup: 0, on_host: 0 };
        watch.look();
        watch
    }

    /// Why a child may have been killed since the last look, in words; `None` if the OOM killer was not at work.
    pub(crate) fn look(&mut self) -> Option<String> {
        let cgroup = self.cgroup.as_deref();
        let in_cgroup = cgroup.and_then(|cgroup| read_count(&cgroup.join("memory.events"))).unwrap_or(0);
        let on_host = read_count(Path::new("/proc/vmstat")).unwrap_or(0);
        let (cgroup_rose, host_rose) = (in_cgroup > self.in_cgroup, on_host > self.on_host);
        (self.in_cgroup, self.on_host) = (in_cgroup, on_host);
        let reason = if cgroup_rose {
            let limit = cgroup.and_then(|cgroup| std::fs::read_to_string(cgroup.join("memory.max")).ok());
            format!(
                "killed by OOM (memory limit of the cgroup: {} bytes)",
                limit.as_deref().map_or("?", str::trim)
            )
        } else if host_rose {
            "probably killed by OOM (the host ran out of memory)".to_owned()
        } else {
            return None;
        };
        Some(format!(
            "{reason}; --max-batch-total-tokens or --gpu-memory-utilization make the KV cache smaller"
        ))
    }
}

fn read_count(file: &Path) -> Option<u64> {
    parse_count(&std::fs::read_to_string(file).ok()?)
}

/// The value of the line `oom_kill N`.
fn parse_count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        assert_eq!(parse_count("low 0\nhigh 0\nmax 5\noom 1\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(parse_count("nr_free_pages 1\noom_kill 12\n"), Some(12));
        assert_eq!(parse_count("oom 1\n"), None);
    }

    #[test]
    fn a_kill_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("memory.events", "oom_kill 0\n");
        write("memory.max", "4096\n");
        let mut watch =
            OomWatch { cgroup: Some(directory.path().to_owned()), in_cgroup: 0, on_host: u64::MAX };
        assert_eq!(watch.look(), None);
        write("memory.events", "oom_kill 1\n");
        assert!(watch.look().unwrap().contains("4096 bytes"));
        assert_eq!(watch.look(), None);
    }
}
