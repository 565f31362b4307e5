//! What is going to run: a pure function from what was asked, what the model is and what the host has, to the command of
//! every child.
//!
//! ```text
//!   ServeArgs ─┐
//!   model's heads ─┼─► Placement { device, ranks, GPUs, threads } ─► Plan ─► shard_command(rank, restart)
//!   Host ──────┘                                                          └► router_command(port)
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cli::{DeviceChoice, LogLevel, ServeArgs};
use crate::error::LaunchError;
use crate::host::Host;

/// A command, with what differs from the launcher's own environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChildCommand {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    /// Variables to set, or (`None`) to take away.
    pub(crate) variables: BTreeMap<String, Option<OsString>>,
}

/// How many parts a model's attention can be cut into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) num_attention_heads: u32,
    pub(crate) num_key_value_heads: u32,
}

/// The device and the ranks of the one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) device: Device,
    /// CPU threads per rank; 0: the shard decides (a rank that is alone takes all cores).
    pub(crate) num_threads: u32,
}

/// Where the ranks compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu {
        world_size: u32,
    },
    /// One GPU per rank, in rank order, as `CUDA_VISIBLE_DEVICES` names it.
    Cuda {
        gpus: Vec<String>,
    },
}

/// Everything needed to start, and to start again, each child.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) args: &'a ServeArgs,
    /// Starts this program again; `shard …` or `router …` is appended.
    pub(crate) child: &'a [OsString],
    pub(crate) model_path: &'a Path,
    /// The name that clients see.
    pub(crate) served_name: &'a str,
    pub(crate) placement: Placement,
    pub(crate) run_directory: &'a Path,
}

/// The longest path that fits `sockaddr_un`, in bytes, without its terminating zero.
const MAX_SOCKET_PATH: usize = 107;

// === impl Heads ===

impl Heads {
    fn allow(self, num_shard: u32) -> bool {
        self.num_attention_heads.is_multiple_of(num_shard)
            && self.num_key_value_heads.is_multiple_of(num_shard)
    }

    /// The counts of ranks that this model allows, in ascending order.
    fn possible(self) -> impl DoubleEndedIterator<Item = u32> {
        (1..=self.num_key_value_heads).filter(move |num_shard| self.allow(*num_shard))
    }
}

// === impl Placement ===

impl Placement {
    /// Decides where to compute. One rank unless --num-shard or --sharded ask for more: a model that fits one GPU is
    /// answered fastest by one GPU, and the others are better used by further replicas.
    ///
    /// # Errors
    /// If the ranks asked for do not divide the heads, or there are fewer GPUs than ranks.
    pub(crate) fn choose(args: &ServeArgs, heads: Heads, host: &Host) -> Result<Self, LaunchError> {
        let asked = &args.placement;
        let on_gpu = match asked.device {
            DeviceChoice::Cpu => false,
            DeviceChoice::Auto => !host.gpus.is_empty(),
            DeviceChoice::Cuda if host.gpus.is_empty() => return Err(LaunchError::NoGpu),
            DeviceChoice::Cuda => true,
        };
        let num_visible = if on_gpu { host.gpus.len() } else { 0 };
        let world_size = match (asked.num_shard, asked.sharded) {
            (Some(num_shard), _) => num_shard,
            (None, Some(true)) if num_visible < 2 => return Err(LaunchError::NothingToShard { num_visible }),
            (None, Some(true)) => heads.possible().rfind(|n| *n as usize <= num_visible).unwrap_or(1),
            (None, _) => 1,
        };
        if !heads.allow(world_size) {
            return Err(LaunchError::HeadsNotDivisible {
                num_shard: world_size,
                num_attention_heads: heads.num_attention_heads,
                num_key_value_heads: heads.num_key_value_heads,
                possible: heads.possible().map(|n| n.to_string()).collect::<Vec<_>>().join(", "),
            });
        }
        if on_gpu && world_size as usize > num_visible {
            return Err(LaunchError::NotEnoughGpus { num_shard: world_size, num_visible });
        }
        let device = if on_gpu {
            Device::Cuda { gpus: host.gpus[..world_size as usize].to_vec() }
        } else {
            Device::Cpu { world_size }
        };
        Ok(Self { device, num_threads: threads_per_rank(asked.num_threads, world_size, host.num_cores) })
    }

    /// The number of ranks.
    pub(crate) fn world_size(&self) -> u32 {
        match &self.device {
            Device::Cpu { world_size } => *world_size,
            Device::Cuda { gpus } => u32::try_from(gpus.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Splits the threads over the ranks; every rank has at least one.
fn threads_per_rank(asked: u32, world_size: u32, num_cores: u32) -> u32 {
    match (asked, world_size) {
        (0, 1) => 0,
        (0, _) => (num_cores / world_size).max(1),
        (threads, _) => (threads / world_size).max(1),
    }
}

// === impl Plan ===

impl Plan<'_> {
    /// Checks that the sockets' paths can be bound.
    ///
    /// # Errors
    /// If the run directory's path is too long.
    pub(crate) fn check(&self) -> Result<(), LaunchError> {
        let last = self.socket(self.placement.world_size() - 1);
        if last.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(LaunchError::SocketPathTooLong { path: self.run_directory.to_owned() });
        }
        Ok(())
    }

    /// The socket of one rank.
    pub(crate) fn socket(&self, rank: u32) -> PathBuf {
        self.run_directory.join(format!("shard-{rank}.sock"))
    }

    /// The command of one rank. `restart` counts the replica's restarts: the ranks of one incarnation meet at one file,
    /// which no earlier incarnation has touched.
    pub(crate) fn shard_command(&self, rank: u32, restart: u32) -> ChildCommand {
        let model = &self.args.model;
        let world_size = self.placement.world_size();
        let mut command = self.command("shard");
        command.path("--model", self.model_path);
        command.path("--socket", &self.socket(rank));
        command.flag("--load-format", value_name(model.load_format));
        command.flag("--dtype", value_name(model.dtype));
        command.flag("--quantize", value_name(model.quantize));
        command.flag("--kv-cache-dtype", value_name(model.kv_cache_dtype));
        command.flag("--attention-backend", value_name(self.args.placement.attention_backend));
        if !self.args.placement.has_cuda_graphs() {
            command.args.push("--no-cuda-graphs".into());
        }
        command.flag("--rank", rank);
        command.flag("--world-size", world_size);
        if world_size > 1 {
            let file = self.run_directory.join(format!("rendezvous-{restart}"));
            command.flag("--rendezvous", format!("file://{}", file.display()));
        }
        match &self.placement.device {
            Device::Cpu { .. } => command.flag("--device", "cpu"),
            Device::Cuda { gpus } => {
                command.flag("--device", "cuda");
                // All of the replica's GPUs, in rank order: rank r computes on device r, and sees its peers' memory.
                command.set("CUDA_VISIBLE_DEVICES", gpus.join(","));
            }
        }
        command.flag("--num-threads", self.placement.num_threads);
        command.option("--otlp-endpoint", self.args.observe.otlp_endpoint.as_ref());
        command.flag("--log-level", value_name(self.args.observe.log_level));
        self.observe(&mut command);
        command
    }

    /// The command of the router. `port` is what the last router bound, once that is known, so that a restarted router is
    /// found where its predecessor was even with `--port 0`.
    pub(crate) fn router_command(&self, port: Option<u16>) -> ChildCommand {
        let (model, limits, http) = (&self.args.model, &self.args.limits, &self.args.http);
        let mut command = self.command("router");
        command.path("--model-path", self.model_path);
        command.flag("--model-id", self.served_name);
        for rank in 0..self.placement.world_size() {
            command.path("--shard-socket", &self.socket(rank));
        }
        command.flag("--hostname", &http.hostname);
        command.flag("--port", port.unwrap_or(http.port));
        if let Some(path) = &model.tokenizer {
            command.path("--tokenizer", path);
        }
        if let Some(path) = &model.tokenizer_config_path {
            command.path("--tokenizer-config-path", path);
        }
        command.option("--max-concurrent-requests", limits.max_concurrent_requests);
        command.option("--max-best-of", limits.max_best_of);
        command.option("--max-stop-sequences", limits.max_stop_sequences);
        command.option("--max-top-n-tokens", limits.max_top_n_tokens);
        command.option("--max-input-tokens", limits.max_input_tokens);
        command.option("--max-total-tokens", limits.max_total_tokens);
        command.option("--max-batch-prefill-tokens", limits.max_batch_prefill_tokens);
        command.option("--max-batch-total-tokens", limits.max_batch_total_tokens);
        command.option("--max-batch-size", limits.max_batch_size);
        command.option("--max-client-batch-size", limits.max_client_batch_size);
        command.option("--payload-limit", limits.payload_limit);
        command.option("--target-itl", limits.target_itl);
        command.option("--max-queue-time", limits.max_queue_time);
        for quota in &limits.cache_quota {
            command.flag("--cache-quota", quota);
        }
        command.option("--block-size", limits.block_size);
        command.option("--gpu-memory-utilization", limits.gpu_memory_utilization);
        if limits.no_prefix_cache {
            command.args.push("--no-prefix-cache".into());
        }
        for origin in &http.cors_allow_origin {
            command.flag("--cors-allow-origin", origin);
        }
        command.flag("--graceful-termination-timeout", http.graceful_termination_timeout);
        command.option("--step-timeout", http.step_timeout);
        command.option("--otlp-endpoint", self.args.observe.otlp_endpoint.as_ref());
        command.option("--otlp-service-name", self.args.observe.otlp_service_name.as_ref());
        command.flag("--log-level", directive(self.args.observe.log_level));
        self.observe(&mut command);
        command.option("--api-key-file", http.api_key_file.as_ref().map(|path| path.display()));
        // Through the environment: arguments are visible to every user of the host.
        if !http.api_key.is_empty() {
            command.set("API_KEY", http.api_key.join("\n"));
        }
        command
    }

    /// The command that fetches a known model.
    pub(crate) fn fetch_command(child: &[OsString], name: &str) -> ChildCommand {
        let mut command = ChildCommand::new(child, "fetch");
        command.args.push(name.into());
        command
    }

    fn command(&self, part: &str) -> ChildCommand {
        let mut command = ChildCommand::new(self.child, part);
        // The variables that stand in for flags have been read; children are told by flags, and nobody else by anything.
        command.variables.extend(self.args.variables.iter().map(|name| (name.clone(), None)));
        command
    }

    fn observe(&self, command: &mut ChildCommand) {
        if self.args.observe.json_output {
            command.args.push("--json-output".into());
        }
    }
}

// === impl ChildCommand ===

impl ChildCommand {
    fn new(child: &[OsString], part: &str) -> Self {
        let (program, prefix) = child.split_first().expect("the child command has a program. This is a bug.");
        let mut args = prefix.to_vec();
        args.push(part.into());
        // A file torch.py in the directory where the user happens to stand must not be imported.
        let variables =
            ["PYTHONSAFEPATH", "PYTHONUNBUFFERED"].map(|name| (name.to_owned(), Some("1".into())));
        Self { program: program.clone(), args, variables: BTreeMap::from(variables) }
    }

    /// Appends `name=value` as one argument: a value that begins with a dash is still a value.
    fn flag(&mut self, name: &str, value: impl std::fmt::Display) {
        self.args.push(format!("{name}={value}").into());
    }

    fn option(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.flag(name, value);
        }
    }

    /// As [`flag`](Self::flag), for paths, which need not be UTF-8.
    fn path(&mut self, name: &str, value: &Path) {
        let mut arg = OsString::from(format!("{name}="));
        arg.push(value);
        self.args.push(arg);
    }

    fn set(&mut self, name: &str, value: String) {
        self.variables.insert(name.to_owned(), Some(value.into()));
    }
}

/// The spelling of a level in the router's filter directives.
fn directive(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warning => "warn",
        LogLevel::Error => "error",
    }
}

/// The spelling of a clap value on the command line.
fn value_name(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .expect("every value has a name. This is a bug.")
}

#[cfg(test)]
mod tests;
