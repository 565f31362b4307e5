//! From what the user calls a model to the path of its files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};

use crate::child::{ChildId, Event};
use crate::error::{Exit, LaunchError};
use crate::logs::Console;
use crate::plan::Plan;
use crate::process::{Cause, Death, Message, Process};
use crate::supervise::quote;

/// A model that `anaphora fetch` can get.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KnownModel {
    pub(crate) name: &'static str,
    /// For the message that lists them.
    pub(crate) what: &'static str,
}

/// The names that stand for a model. `anaphora fetch` holds where each comes from.
pub(crate) const KNOWN_MODELS: &[KnownModel] = &[
    KnownModel { name: "smollm2-135m", what: "SmolLM2-135M-Instruct, Q4_1 GGUF" },
    KnownModel { name: "gemma3-270m", what: "Gemma 3 270M, not a chat model, Q4_K_M GGUF" },
];

/// Where a model's files are, or how to get them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Path(PathBuf),
    Known(&'static KnownModel),
}

/// Finds what `model` means. A path that exists goes before a known name.
///
/// # Errors
/// If it is neither.
pub(crate) fn locate(model: &str) -> Result<Source, LaunchError> {
    let path = Path::new(model);
    if path.exists() {
        // Children run with the same working directory; an absolute path says more in their logs.
        return Ok(Source::Path(std::path::absolute(path).unwrap_or_else(|_| path.to_owned())));
    }
    let known = KNOWN_MODELS.iter().find(|known| known.name.eq_ignore_ascii_case(model));
    known.map(Source::Known).ok_or_else(|| LaunchError::NoSuchModel {
        given: model.to_owned(),
        known: KNOWN_MODELS
            .iter()
            .map(|known| format!("{} ({})", known.name, known.what))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// The name that clients see: a known name, or what the file or directory is called. Not its path, which is nobody's
/// business outside this host.
pub(crate) fn served_name(source: &Source) -> String {
    match source {
        Source::Known(known) => known.name.to_owned(),
        Source::Path(path) => {
            let is = |wanted: &str| {
                path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
            };
            let name = match () {
                () if is("gguf") => path.file_stem(),
                () if is("json") => path.parent().and_then(Path::file_name), // a bare config.json, with random weights
                () => path.file_name(),
            };
            name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// Runs `fetch NAME` and returns the path that it reports; how far it has come is shown as progress.
///
/// # Errors
/// If it cannot be started or fails, or the launcher is told to stop meanwhile.
pub(crate) fn fetch(
    known: &'static KnownModel,
    child: &[OsString],
    messages: (&Sender<Message>, &Receiver<Message>),
    console: &Console,
    mut show: impl FnMut(u64, u64, &str),
) -> Result<PathBuf, LaunchError> {
    let command = Plan::fetch_command(child, known.name);
    let process = Process::spawn(ChildId::Fetch, 0, &command, messages.0, console)?;
    let mut path = None;
    for message in messages.1 {
        match message {
            Message::Line { line, .. } => match Event::parse(&line) {
                Some(Event::Phase { done, total, unit, .. }) => show(done, total, &unit),
                Some(Event::Model { path: reported }) => path = Some(PathBuf::from(reported)),
                _ => console.log(ChildId::Fetch, line),
            },
            Message::Stop => {
                process.kill();
                process.reap();
                return Err(LaunchError::Stopped { message: String::new(), exit: Exit::Clean });
            }
            Message::Exited { death, .. } => {
                process.reap();
                return fetched(known.name, &death, path);
            }
        }
    }
    unreachable!("the launcher holds a sender of its own. This is a bug.")
}

fn fetched(name: &'static str, death: &Death, path: Option<PathBuf>) -> Result<PathBuf, LaunchError> {
    let failed = |reason, exit| Err(LaunchError::Fetch { name, reason, exit });
    match (death.cause, path) {
        (Cause::Code(0), Some(path)) => Ok(path),
        (Cause::Code(0), None) => failed("it reported no path".to_owned(), Exit::Unexpected),
        (cause @ Cause::Code(code), _) => {
            let exit = Exit::refusal(code).unwrap_or(Exit::Unexpected);
            failed(format!("{cause}{}", quote(&death.last_words)), exit)
        }
        (cause @ Cause::Signal(_), _) => failed(cause.to_string(), Exit::Unexpected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("Some-Model.Q4_1.gguf");
        std::fs::write(&file, "").unwrap();
        let at = |path: &Path| locate(path.to_str().unwrap()).unwrap();
        assert_eq!(at(&file), Source::Path(file.clone()));
        assert_eq!(served_name(&at(&file)), "Some-Model.Q4_1");
        let config = directory.path().join("config.json");
        std::fs::write(&config, "").unwrap();
        assert_eq!(served_name(&at(&config)), served_name(&at(directory.path())));
        assert_eq!(at(directory.path()), Source::Path(directory.path().to_owned()));
        for known in KNOWN_MODELS {
            assert_eq!(locate(known.name).unwrap(), Source::Known(known));
            assert_eq!(locate(&known.name.to_uppercase()).unwrap(), Source::Known(known));
            assert_eq!(served_name(&Source::Known(known)), known.name);
        }
    }

    #[test]
    fn an_unknown_name_is_told_what_would_do() {
        let error = locate("meta-llama/Llama-3.1-8B").unwrap_err();
        assert_eq!(error.exit(), Exit::Model);
        insta::assert_snapshot!(error, @"meta-llama/Llama-3.1-8B: no such file or directory. Expected is a Hugging Face directory (config.json, safetensors), a GGUF file, or one of the known names: smollm2-135m (SmolLM2-135M-Instruct, Q4_1 GGUF), gemma3-270m (Gemma 3 270M, not a chat model, Q4_K_M GGUF). Models are not fetched from the hub");
    }

    #[test]
    fn the_names_are_those_that_fetch_knows() {
        let fetch = include_str!("../../server/anaphora/fetch.py");
        let names = fetch.lines().filter_map(|line| line.strip_suffix(": KnownModel("));
        let names: Vec<_> = names.map(|name| name.trim().trim_matches('"')).collect();
        assert_eq!(names, KNOWN_MODELS.iter().map(|known| known.name).collect::<Vec<_>>());
    }
}
