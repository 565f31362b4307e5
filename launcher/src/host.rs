//! What this host has: CPU cores and NVIDIA GPUs. Observed once; decisions are made from the result in `plan`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli::Environment;

/// The devices that processes started from here may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// Logical cores that this process may run on (affinity and cgroup quota considered).
    pub(crate) num_cores: u32,
    /// What to put into `CUDA_VISIBLE_DEVICES` for each visible GPU: an ordinal, or a UUID.
    pub(crate) gpus: Vec<String>,
}

impl Host {
    /// Looks at the host. Asks the driver's device files first, which costs nothing, and `nvidia-smi` only where there are
    /// none (as under WSL).
    pub(crate) fn observe(environment: &Environment) -> Self {
        let num_cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let num_gpus = || match count_device_files(Path::new("/dev")) {
            0 => count_listed(&nvidia_smi(&["-L"]).unwrap_or_default()),
            files => files,
        };
        Self {
            num_cores: u32::try_from(num_cores).unwrap_or(u32::MAX),
            gpus: visible_gpus(environment, num_gpus),
        }
    }

    /// What `anaphora serve --env` prints.
    pub(crate) fn describe(&self, environment: &Environment) -> String {
        let query = ["--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"];
        let gpus = nvidia_smi(&query).unwrap_or_else(|| "none (no nvidia-smi)".to_owned());
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let variable = |value: &Option<String>| value.clone().unwrap_or_else(|| "(unset)".to_owned());
        format!(
            "anaphora:                {}\nkernel:                  {}\narchitecture:            {}\n\
             cores:                   {}\nmemory:                  {}\nGPUs:                    {}\n\
             GPUs used by anaphora:   {}\nCUDA_VISIBLE_DEVICES:    {}\nNVIDIA_VISIBLE_DEVICES:  {}",
            env!("CARGO_PKG_VERSION"),
            kernel.trim(),
            std::env::consts::ARCH,
            self.num_cores,
            memory
                .lines()
                .next()
                .and_then(|line| line.split_once(':'))
                .map_or("unknown", |(_, size)| size.trim()),
            gpus.trim().replace('\n', "\n                         "),
            if self.gpus.is_empty() { "none".to_owned() } else { self.gpus.join(", ") },
            variable(&environment.cuda_visible_devices),
            variable(&environment.nvidia_visible_devices),
        )
    }
}

/// The GPUs that `environment` leaves visible, of the `num_gpus()` that the driver shows.
fn visible_gpus(environment: &Environment, num_gpus: impl FnOnce() -> usize) -> Vec<String> {
    // A container runtime without its device hook leaves the host's device files visible although it was told "void".
    if matches!(environment.nvidia_visible_devices.as_deref(), Some("void" | "none")) {
        return Vec::new();
    }
    let present = num_gpus();
    let Some(list) = environment.cuda_visible_devices.as_deref().filter(|_| present > 0) else {
        return (0..present).map(|ordinal| ordinal.to_string()).collect();
    };
    // As the CUDA runtime reads it: an invalid entry hides itself and all that follow.
    let valid =
        |entry: &&str| entry.parse::<usize>().map_or(!entry.is_empty() && *entry != "-1", |n| n < present);
    list.split(',').map(str::trim).take_while(valid).map(str::to_owned).collect()
}

/// Counts `nvidia0`, `nvidia1`, … in `directory` (there are also `nvidiactl`, `nvidia-uvm` and more).
fn count_device_files(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let is_gpu = |name: &str| {
        name.strip_prefix("nvidia")
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count()
}

fn count_listed(listing: &str) -> usize {
    listing.lines().filter(|line| line.starts_with("GPU ")).count()
}

/// The output of `nvidia-smi`, if there is one and it succeeds.
fn nvidia_smi(args: &[&str]) -> Option<String> {
    let output =
        Command::new("nvidia-smi").args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cuda: Option<&str>, nvidia: Option<&str>, present: usize, expect: &[&str]) {
        let environment = Environment {
            cuda_visible_devices: cuda.map(str::to_owned),
            nvidia_visible_devices: nvidia.map(str::to_owned),
            ..Environment::default()
        };
        assert_eq!(visible_gpus(&environment, || present), expect, "{cuda:?} {nvidia:?} {present}");
    }

    #[test]
    fn visible() {
        check(None, None, 0, &[]);
        check(None, None, 2, &["0", "1"]);
        check(Some("1"), None, 2, &["1"]);
        check(Some("1, 0"), None, 2, &["1", "0"]);
        check(Some(""), None, 2, &[]);
        check(Some("-1"), None, 2, &[]);
        check(Some("0,-1,1"), None, 2, &["0"]);
        check(Some("0,7,1"), None, 2, &["0"]);
        check(Some("GPU-3f2a,MIG-77"), None, 2, &["GPU-3f2a", "MIG-77"]);
        check(Some("0,1"), None, 0, &[]);
        check(None, Some("all"), 1, &["0"]);
        check(None, Some("void"), 1, &[]);
    }

    #[test]
    fn device_files() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(count_device_files(directory.path()), 2);
        assert_eq!(count_device_files(Path::new("/does/not/exist")), 0);
        assert_eq!(count_listed("GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb\nGPU 1: NVIDIA H200\n"), 2);
    }
}
