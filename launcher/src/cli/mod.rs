//! The command line: what was typed, parsed once, checked, and passed on whole.
//!
//! The only reader of flags and environment variables in this crate. Flags that TGI has keep its names, its environment
//! variables included; those of TGI's that do nothing here, and those that we cannot honour yet, are tables in [`tgi`].

mod args;
mod tgi;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use args::Cli;
pub(crate) use args::{
    CacheAction, CacheArgs, Command, DeviceChoice, LoadFormat, LogLevel, ModelArgs, ServeArgs,
};
use args::{LimitArgs, PlacementArgs};

/// What [`parse`] made of the command line.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) cli: Cli,
    /// One line for each accepted flag that does nothing here.
    pub(crate) warnings: Vec<String>,
}

/// The environment variables that are no flags of ours.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// Whether variables stand in for flags that are not given (TGI's names).
    pub(crate) flags: bool,
    pub(crate) hostname: Option<String>,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) temporary_dir: PathBuf,
    pub(crate) cuda_visible_devices: Option<String>,
    pub(crate) nvidia_visible_devices: Option<String>,
}

/// Parses and checks the command line `args` (the first is the program's name).
///
/// # Errors
/// What clap would print, help and version included; its `exit_code()` is 2 for a mistake.
pub(crate) fn parse(args: Vec<OsString>, environment: &Environment) -> Result<Parsed, clap::Error> {
    let mut command = Cli::command();
    let variables = command.find_subcommand("serve").map(variables_of).unwrap_or_default();
    command = command.mut_subcommand("serve", |serve| serve.args(tgi::args()));
    if !environment.flags {
        command =
            command.mut_subcommand("serve", |serve| serve.mut_args(|arg| arg.env(None::<&'static str>)));
    }
    let matches = command.try_get_matches_from_mut(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let mut warnings = Vec::new();
    if let (Command::Serve(serve), Some(("serve", matches))) = (&mut cli.command, matches.subcommand()) {
        let serve_command = command.find_subcommand_mut("serve").expect("`serve` is derived. This is a bug.");
        serve
            .settle(environment)
            .and_then(|()| refuse(matches))
            .map_err(|message| serve_command.error(ErrorKind::ValueValidation, message))?;
        serve.variables = variables;
        warnings = tgi::warnings(matches);
        if serve.placement.has_cuda_graphs()
            && let Some(sizes) = &serve.placement.cuda_graphs
        {
            warnings.push(format!(
                "--cuda-graphs {sizes} does nothing here: the shards choose the sizes themselves"
            ));
        }
    }
    Ok(Parsed { cli, warnings })
}

fn variables_of(command: &clap::Command) -> Vec<String> {
    command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())).collect()
}

fn refuse(matches: &ArgMatches) -> Result<(), String> {
    tgi::refusal(matches).map_or(Ok(()), Err)
}

// === impl ServeArgs ===

impl ServeArgs {
    /// Fills in what depends on several flags or on the environment, and refuses contradictions.
    fn settle(&mut self, environment: &Environment) -> Result<(), String> {
        self.http.hostname = hostname(self.http.hostname_flag.take(), environment.hostname.as_deref());
        self.http.api_key.retain(|key| !key.is_empty());
        self.limits.settle()?;
        if self.placement.sharded == Some(false) && self.placement.num_shard.is_some_and(|n| n > 1) {
            return Err("--sharded false contradicts --num-shard above 1".to_owned());
        }
        if self.model.name().is_none() && !self.print_environment {
            return Err(
                "a MODEL is required: a Hugging Face directory, a GGUF file, or a known name".to_owned()
            );
        }
        Ok(())
    }
}

// === impl ModelArgs ===

impl ModelArgs {
    /// The model asked for; the positional argument goes before --model-id and $MODEL_ID.
    pub(crate) fn name(&self) -> Option<&str> {
        self.positional.as_deref().or(self.model_id.as_deref()).filter(|name| !name.is_empty())
    }
}

// === impl PlacementArgs ===

impl PlacementArgs {
    /// Whether steps may be captured.
    pub(crate) fn has_cuda_graphs(&self) -> bool {
        self.cuda_graphs.as_deref() != Some("0")
    }
}

// === impl LimitArgs ===

impl LimitArgs {
    fn settle(&mut self) -> Result<(), String> {
        self.max_input_tokens = self.max_input_tokens.or(self.max_input_length);
        match (self.max_input_tokens, self.max_total_tokens) {
            (Some(input), Some(total)) if input >= total => Err(format!(
                "--max-input-tokens ({input}) must be below --max-total-tokens ({total}), so that an answer fits"
            )),
            _ => Ok(()),
        }
    }
}

/// Container runtimes set `$HOSTNAME` to a name that nobody means to listen on, so only an IP address counts there.
fn hostname(flag: Option<String>, variable: Option<&str>) -> String {
    let variable = variable.filter(|name| name.parse::<IpAddr>().is_ok());
    flag.or_else(|| variable.map(str::to_owned)).unwrap_or_else(|| "127.0.0.1".to_owned())
}

// === impl Environment ===

impl Environment {
    /// Reads the process's environment.
    pub(crate) fn capture() -> Self {
        let text = |name| std::env::var(name).ok();
        Self {
            flags: true,
            hostname: text("HOSTNAME"),
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from),
            temporary_dir: std::env::temp_dir(),
            cuda_visible_devices: text("CUDA_VISIBLE_DEVICES"),
            nvidia_visible_devices: text("NVIDIA_VISIBLE_DEVICES"),
        }
    }
}

/// The arguments of `anaphora serve …`, for tests of other modules.
#[cfg(test)]
pub(crate) fn serve_args(args: &[&str]) -> Box<ServeArgs> {
    let line = ["anaphora", "serve"].iter().chain(args).map(OsString::from).collect();
    match parse(line, &Environment::default()).unwrap().cli.command {
        Command::Serve(args) => args,
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests;
