//! What the launcher must know of a model before anything is spawned, read from the heads of its files.

use std::path::Path;

use anaphora_model::{ModelError, ModelSummary};

use crate::cli::{self, ModelArgs};
use crate::error::LaunchError;
use crate::plan::Heads;
use crate::progress::{bytes, count};

/// A model whose files are in order.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) heads: Heads,
    /// e.g. "LlamaForCausalLM, 134.5 M parameters".
    pub(crate) summary: String,
    pub(crate) num_bytes: u64,
    /// Whether /v1/chat/completions works.
    pub(crate) has_chat_template: bool,
}

/// Checks the files of the model at `path`.
///
/// # Errors
/// What is wrong with them, in one paragraph.
pub(crate) fn verify(path: &Path, args: &ModelArgs) -> Result<Verified, LaunchError> {
    let load_format = match args.load_format {
        cli::LoadFormat::Auto => anaphora_model::LoadFormat::Auto,
        cli::LoadFormat::Dummy => anaphora_model::LoadFormat::Dummy,
    };
    let summary: ModelSummary = anaphora_model::verify(path, load_format)?;
    check_tokenizer(path, args)?;
    Ok(Verified {
        heads: Heads {
            num_attention_heads: summary.num_attention_heads,
            num_key_value_heads: summary.num_key_value_heads,
        },
        summary: format!("{}, {} parameters", summary.architecture, count(summary.num_parameters)),
        num_bytes: summary.bytes,
        has_chat_template: has_chat_template(path, args),
    })
}

impl Verified {
    /// What the line of the phase says.
    pub(crate) fn detail(&self) -> String {
        let files = if self.num_bytes == 0 { String::new() } else { format!(", {}", bytes(self.num_bytes)) };
        format!("{}{files}", self.summary)
    }
}

/// That there is a tokenizer for the router to read. A GGUF file brings its own.
fn check_tokenizer(path: &Path, args: &ModelArgs) -> Result<(), ModelError> {
    let tokenizer = match &args.tokenizer {
        Some(given) => given.as_path(),
        None if path.is_dir() => path,
        None => return Ok(()),
    };
    let file = if tokenizer.is_dir() { tokenizer.join("tokenizer.json") } else { tokenizer.to_owned() };
    if file.is_file() {
        return Ok(());
    }
    Err(ModelError::Missing {
        file,
        expected: "a tokenizer in the format of Hugging Face's tokenizers library".to_owned(),
        found: "there is no such file".to_owned(),
        hint: "Copy the model's own beside its weights, or name another with --tokenizer.".to_owned(),
    })
}

/// Whether there is a chat template, without rendering it; that is the router's business.
fn has_chat_template(path: &Path, args: &ModelArgs) -> bool {
    let config = |file: &Path| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        serde_json::from_str(&text).is_ok_and(|value: serde_json::Value| value.get("chat_template").is_some())
    };
    if let Some(file) = &args.tokenizer_config_path {
        // Anything but JSON is a bare template.
        let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        return !is_json || config(file);
    }
    if path.is_file() {
        let gguf = anaphora_model::Gguf::read(path);
        return gguf.is_ok_and(|gguf| gguf.metadata.contains_key("tokenizer.chat_template"));
    }
    path.join("chat_template.jinja").is_file() || config(&path.join("tokenizer_config.json"))
}
