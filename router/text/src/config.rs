//! Everything about text that a model's files say: tokenizer, template, special tokens, where a text ends.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anaphora_model::Gguf;
use anaphora_model::gguf::Value;
use serde_json::Value as Json;

use crate::error::TextError;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// What the service needs to know to turn requests into tokens and tokens into answers.
#[derive(Debug)]
pub struct TextConfig {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, if the model has one.
    pub template: Option<ChatTemplate>,
    /// The text of the token that begins a text.
    pub bos_token: Option<String>,
    /// The text of the token that ends one.
    pub eos_token: Option<String>,
    /// Every token that ends an answer, in ascending order: of `generation_config.json`, `config.json`,
    /// `tokenizer_config.json`, or of the GGUF file's metadata.
    pub eos_token_ids: Vec<u32>,
    /// The longest text that the model was made for, in tokens.
    pub max_context: Option<u32>,
    /// Whether the tokenizer puts a BOS before a raw prompt (a rendered chat writes its own).
    pub add_bos: bool,
}

/// What ends a turn of a chat in GGUF files that do not say so: the converter writes no list, and Gemma has two ends.
const TURN_ENDS: [&str; 3] = ["<end_of_turn>", "<|eot_id|>", "<|im_end|>"];

/// What is gathered while the files are read.
#[derive(Default)]
struct Gathered {
    template: Option<(PathBuf, String)>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    eos_token_ids: BTreeSet<u32>,
    max_context: Option<u32>,
}

impl TextConfig {
    /// Reads the text side of `model`: a GGUF file or a directory. `tokenizer` replaces where the tokenizer (with its
    /// special tokens and chat template) is read from; `tokenizer_config` is a `tokenizer_config.json`, or a bare Jinja
    /// file, whose template and special tokens win over all others.
    ///
    /// # Errors
    /// If there is no tokenizer, or if a file that is there cannot be used. A missing template is not an error.
    pub fn open(
        model: &Path,
        tokenizer: Option<&Path>,
        tokenizer_config: Option<&Path>,
    ) -> Result<Self, TextError> {
        let mut gathered = Gathered::default();
        let from_gguf = gathered.read_model(model)?;
        let tokenizer = match (tokenizer, from_gguf) {
            (Some(path), _) => {
                let read = Tokenizer::open(path)?;
                gathered.read_beside(path)?;
                read
            }
            (None, Some(file)) => Tokenizer::from_gguf(&file)?,
            (None, None) => Tokenizer::open(model)?,
        };
        if let Some(path) = tokenizer_config {
            gathered.read_override(path)?;
        }
        gathered.finish(tokenizer)
    }
}

// === impl Gathered ===

impl Gathered {
    /// Reads what the model's own files say; gives back the GGUF file if it is one.
    fn read_model(&mut self, model: &Path) -> Result<Option<Gguf>, TextError> {
        if model.is_dir() {
            self.read_directory(model)?;
            return Ok(None);
        }
        let is_json = model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        if is_json {
            self.read_beside(model)?;
            return Ok(None);
        }
        let file = Gguf::read(model)?;
        self.read_gguf(&file);
        Ok(Some(file))
    }

    /// Reads what lies beside a tokenizer that was named by itself.
    fn read_beside(&mut self, tokenizer: &Path) -> Result<(), TextError> {
        if tokenizer.is_dir() {
            return self.read_directory(tokenizer);
        }
        if tokenizer.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            return tokenizer.parent().map_or(Ok(()), |directory| self.read_directory(directory));
        }
        self.read_gguf(&Gguf::read(tokenizer)?);
        Ok(())
    }

    fn read_directory(&mut self, directory: &Path) -> Result<(), TextError> {
        let read = |name: &str| read_json(&directory.join(name));
        if let Some(config) = read("config.json")? {
            self.eos_token_ids.extend(token_ids(&config["eos_token_id"]));
            let context =
                config["max_position_embeddings"].as_u64().and_then(|number| u32::try_from(number).ok());
            self.max_context = context.or(self.max_context);
        }
        if let Some(config) = read("generation_config.json")? {
            self.eos_token_ids.extend(token_ids(&config["eos_token_id"]));
        }
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            if let Some(config) = read(name)? {
                self.read_tokenizer_config(&directory.join(name), &config);
            }
        }
        // A template in its own file wins over one in tokenizer_config.json, and Jinja over JSON: as in transformers.
        let file = directory.join("chat_template.json");
        if let Some(config) = read_json(&file)? {
            self.take_template(&file, &config["chat_template"]);
        }
        let file = directory.join("chat_template.jinja");
        if let Some(source) = read_text(&file)? {
            self.template = Some((file, source));
        }
        Ok(())
    }

    fn read_tokenizer_config(&mut self, file: &Path, config: &Json) {
        self.bos_token = token_text(&config["bos_token"]).or(self.bos_token.take());
        self.eos_token = token_text(&config["eos_token"]).or(self.eos_token.take());
        self.take_template(file, &config["chat_template"]);
    }

    /// A template is a string, or a list of `{name, template}` of which `default` is taken.
    fn take_template(&mut self, file: &Path, value: &Json) {
        let source = match value {
            Json::Array(named) => {
                let default = named.iter().find(|entry| entry["name"] == "default");
                default.or(named.first()).and_then(|entry| entry["template"].as_str())
            }
            other => other.as_str(),
        };
        if let Some(source) = source {
            self.template = Some((file.to_owned(), source.to_owned()));
        }
    }

    fn read_gguf(&mut self, file: &Gguf) {
        let metadata = &file.metadata;
        let tokens =
            metadata.get("tokenizer.ggml.tokens").and_then(|value| value.as_array()).unwrap_or_default();
        let text = |key| tokens.get(metadata.u32(key)? as usize)?.as_str().map(str::to_owned);
        self.bos_token = text("tokenizer.ggml.bos_token_id").or(self.bos_token.take());
        self.eos_token = text("tokenizer.ggml.eos_token_id").or(self.eos_token.take());
        let ends = ["eos", "eot", "eom"].map(|name| metadata.u32(&format!("tokenizer.ggml.{name}_token_id")));
        self.eos_token_ids.extend(ends.into_iter().flatten());
        if !metadata.contains_key("tokenizer.ggml.eot_token_id") {
            let is_end = |token: &Value| token.as_str().is_some_and(|text| TURN_ENDS.contains(&text));
            self.eos_token_ids.extend((0..).zip(tokens).filter(|(_, token)| is_end(token)).map(|(id, _)| id));
        }
        if let Some(source) = metadata.string("tokenizer.chat_template") {
            self.template = Some((file.path.clone(), source.to_owned()));
        }
        if let Some(architecture) = metadata.string("general.architecture") {
            self.max_context = metadata.u32(&format!("{architecture}.context_length")).or(self.max_context);
        }
    }

    fn read_override(&mut self, path: &Path) -> Result<(), TextError> {
        let missing = || TextError::Io {
            file: path.to_owned(),
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        };
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            let config = read_json(path)?.ok_or_else(missing)?;
            self.read_tokenizer_config(path, &config);
        } else {
            let source = read_text(path)?.ok_or_else(missing)?;
            self.template = Some((path.to_owned(), source));
        }
        Ok(())
    }

    fn finish(mut self, tokenizer: Tokenizer) -> Result<TextConfig, TextError> {
        self.eos_token_ids.extend(self.eos_token.as_deref().and_then(|token| tokenizer.token_to_id(token)));
        let (bos, eos) = (self.bos_token.as_deref(), self.eos_token.as_deref());
        let template = match &self.template {
            Some((file, source)) => Some(
                ChatTemplate::new(source, bos, eos)
                    .map_err(|source| TextError::Template { file: file.clone(), source })?,
            ),
            None => None,
        };
        let bos_id = bos.and_then(|token| tokenizer.token_to_id(token));
        let add_bos = bos_id.is_some() && tokenizer.encode("a", true)?.first().copied() == bos_id;
        Ok(TextConfig {
            template,
            bos_token: self.bos_token,
            eos_token: self.eos_token,
            eos_token_ids: self.eos_token_ids.into_iter().collect(),
            max_context: self.max_context,
            add_bos,
            tokenizer,
        })
    }
}

/// An id, or a list of ids.
fn token_ids(value: &Json) -> Vec<u32> {
    let one = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Json::Array(values) => values.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

/// A token's text: a string, or an object with `content`.
fn token_text(value: &Json) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn read_text(file: &Path) -> Result<Option<String>, TextError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Io { file: file.to_owned(), source }),
    }
}

fn read_json(file: &Path) -> Result<Option<Json>, TextError> {
    let Some(text) = read_text(file)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| TextError::Invalid {
        file: file.to_owned(),
        item: "the whole file".to_owned(),
        expected: "JSON".to_owned(),
        found: error.to_string(),
    })
}
