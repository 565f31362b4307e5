//! Why a launch failed, and with which exit code.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anaphora_model::ModelError;

/// The exit codes that `anaphora --help` documents, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Clean = 0,
    Unexpected = 1,
    Usage = 2,
    Model = 3,
    Address = 4,
    Exhausted = 5,
}

impl Exit {
    /// The meaning of a child's exit code that no restart can mend.
    pub(crate) fn refusal(code: i32) -> Option<Self> {
        match code {
            2 => Some(Self::Usage),
            3 => Some(Self::Model),
            4 => Some(Self::Address),
            _ => None,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why nothing is served, or no longer. Its text is one paragraph for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error(
        "--num-shard {num_shard} does not divide this model: it has {num_attention_heads} attention heads and \
         {num_key_value_heads} KV heads, and each rank takes an equal part of both. Possible here: {possible}"
    )]
    HeadsNotDivisible { num_shard: u32, num_attention_heads: u32, num_key_value_heads: u32, possible: String },

    #[error(
        "--num-shard {num_shard} needs as many GPUs; {num_visible} visible (CUDA_VISIBLE_DEVICES limits what is)"
    )]
    NotEnoughGpus { num_shard: u32, num_visible: usize },

    #[error(
        "--sharded without --num-shard takes all visible GPUs, and there are {num_visible}; on a CPU say how many \
         ranks with --num-shard"
    )]
    NothingToShard { num_visible: usize },

    #[error("--device cuda: no NVIDIA GPU is visible (no /dev/nvidia0, or CUDA_VISIBLE_DEVICES hides it)")]
    NoGpu,

    #[error(
        "the path of the run directory {} is too long for a Unix socket (at most 107 bytes with the socket's \
         name); give a shorter directory with --shard-uds-path", path.display()
    )]
    SocketPathTooLong { path: PathBuf },

    #[error(
        "{given}: no such file or directory. Expected is a Hugging Face directory (config.json, safetensors), a GGUF \
         file, or one of the known names: {known}. Models are not fetched from the hub"
    )]
    NoSuchModel { given: String, known: String },

    #[error(transparent)]
    Model(#[from] ModelError),

    #[error("cannot fetch {name}: {reason}")]
    Fetch { name: &'static str, reason: String, exit: Exit },

    #[error(
        "cannot listen on {address}: {source}. Choose another port with --port (0: any that is free), or end what uses \
         it: `ss -ltnp` shows who"
    )]
    CannotBind { address: String, source: io::Error },

    #[error("cannot make the run directory in {}: {source}", parent.display())]
    RunDirectory { parent: PathBuf, source: io::Error },

    #[error("cannot start `{command}`: {source}")]
    Spawn { command: String, source: io::Error },

    #[error("cannot watch for signals: {0}")]
    Signals(#[source] io::Error),

    #[error("{0}")]
    Cache(String),

    #[error("{message}")]
    Stopped { message: String, exit: Exit },
}

impl LaunchError {
    /// The exit code that tells this from other failures.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::HeadsNotDivisible { .. }
            | Self::NotEnoughGpus { .. }
            | Self::NothingToShard { .. }
            | Self::NoGpu
            | Self::SocketPathTooLong { .. } => Exit::Usage,
            Self::NoSuchModel { .. } | Self::Model(_) => Exit::Model,
            Self::CannotBind { .. } => Exit::Address,
            Self::RunDirectory { .. } | Self::Spawn { .. } | Self::Signals(_) | Self::Cache(_) => {
                Exit::Unexpected
            }
            Self::Fetch { exit, .. } | Self::Stopped { exit, .. } => *exit,
        }
    }
}
