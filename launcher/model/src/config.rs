//! The sizes and switches of a model, in one form, whether they come from a `config.json` or from GGUF metadata.
//!
//! What the shard cannot honour is refused here rather than ignored: wrong text is worse than none. The shard reads the
//! same keys with the same defaults (`server/anaphora/model_config.py`).

mod gguf;
mod hugging_face;

use std::path::Path;

use crate::error::ModelError;
use crate::fp8::Fp8Activations;

/// An architecture that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, and everything that calls itself so.
    Llama,
    /// Mistral 7B: Llama with a sliding window.
    Mistral,
    /// Qwen3's dense models: Llama with norms on query and key heads.
    Qwen3,
    /// Gemma 3's text models.
    Gemma3,
}

/// The name in `architectures` of `config.json`, `general.architecture` of GGUF files, and what we call it.
const ARCHITECTURES: &[(Architecture, &str, Option<&str>)] = &[
    (Architecture::Llama, "LlamaForCausalLM", Some("llama")),
    (Architecture::Mistral, "MistralForCausalLM", None),
    (Architecture::Qwen3, "Qwen3ForCausalLM", Some("qwen3")),
    (Architecture::Gemma3, "Gemma3ForCausalLM", Some("gemma3")),
];

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All positions divided by a factor.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Llama 3.1's rule: low frequencies are divided by `factor`, high ones left, those between blended.
    Llama3 {
        /// By how much the lowest are divided.
        factor: f64,
        /// Below `original_max_position_embeddings / low_freq_factor` rotations, divide.
        low_freq_factor: f64,
        /// Above `original_max_position_embeddings / high_freq_factor` rotations, leave.
        high_freq_factor: f64,
        /// The context that the model was first trained with, in tokens.
        original_max_position_embeddings: u32,
    },
    /// GGUF's form of the above: one divisor per frequency, in the tensor `rope_freqs.weight`.
    Factors,
}

/// The sizes and switches of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which model it is.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the MLP.
    pub intermediate_size: u32,
    /// Decoder layers.
    pub num_layers: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: u32,
    /// Width of a head; even.
    pub head_dim: u32,
    /// Added to the mean square in RMS norms.
    pub norm_eps: f64,
    /// The longest text that the model was made for, in tokens.
    pub max_context: u32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How they are stretched, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the attention's projections have biases.
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// How far back a token looks, in tokens, in the layers that have a window.
    pub sliding_window: Option<u32>,
    /// The type that the weights were saved in, as the configuration names it; GGUF files name none.
    pub dtype: Option<String>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// How activations become FP8, in a checkpoint whose weights are FP8.
    pub fp8_activations: Option<Fp8Activations>,
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// If it cannot be read, lacks a key, or asks for something that is not supported: the message names the key.
    pub fn from_json_file(file: &Path) -> Result<Self, ModelError> {
        hugging_face::read(file)
    }

    /// Takes the configuration from a GGUF file's metadata.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json_file`].
    pub fn from_gguf(file: &crate::Gguf) -> Result<Self, ModelError> {
        gguf::read(file)
    }
}

impl Architecture {
    /// The name that `config.json` and our shard use.
    pub fn name(self) -> &'static str {
        ARCHITECTURES.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }

    /// Whether query and key heads are normalised before they are rotated.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether attention and MLP stand between two norms each, instead of behind one.
    pub fn has_outer_norms(self) -> bool {
        self == Self::Gemma3
    }

    fn from_name(name: &str) -> Option<Self> {
        ARCHITECTURES.iter().find(|entry| entry.1 == name).map(|entry| entry.0)
    }

    fn from_gguf_name(name: &str) -> Option<Self> {
        ARCHITECTURES.iter().find(|entry| entry.2 == Some(name)).map(|entry| entry.0)
    }
}

/// Makes errors that name the file and the key.
struct Source<'a> {
    file: &'a Path,
}

/// Sizes beyond this are damage, and their products would not fit 64 bits.
const MAX_SIZE: u64 = 1 << 28;

impl Source<'_> {
    fn invalid(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) -> ModelError {
        ModelError::Corrupt {
            file: self.file.to_owned(),
            item: format!("`{key}`"),
            expected: expected.into(),
            found: found.into(),
            hint: "Restore the model's own configuration.",
        }
    }

    fn unsupported(
        &self,
        item: impl Into<String>,
        found: impl Into<String>,
        supported: impl Into<String>,
        hint: &'static str,
    ) -> ModelError {
        ModelError::Unsupported {
            file: self.file.to_owned(),
            item: item.into(),
            found: found.into(),
            supported: supported.into(),
            hint,
        }
    }

    fn unknown_architecture(&self, found: &str, is_gguf: bool) -> ModelError {
        let names = ARCHITECTURES.iter().filter_map(|entry| if is_gguf { entry.2 } else { Some(entry.1) });
        let supported = names.collect::<Vec<_>>().join(", ");
        let name = found.to_ascii_lowercase();
        let hint = if name.contains("moe") {
            "Mixtures of experts are not served yet: choose a dense model."
        } else if name.ends_with("forconditionalgeneration") || name.ends_with("vl") {
            "Models that see or hear are not served yet: choose a text-only model of the family."
        } else {
            "Choose a model of a supported architecture."
        };
        self.unsupported("architecture", found, supported, hint)
    }

    /// A size: from 1 to [`MAX_SIZE`].
    fn size(&self, key: &str, value: Option<u64>, found: &str) -> Result<u32, ModelError> {
        let size = value
            .filter(|&value| (1..=MAX_SIZE).contains(&value))
            .and_then(|value| u32::try_from(value).ok());
        size.ok_or_else(|| self.invalid(key, "a whole number from 1 to 268,435,456", found))
    }

    /// What no single key can tell: that heads divide.
    fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let (heads, shared) = (config.num_attention_heads, config.num_key_value_heads);
        if heads % shared != 0 {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(self.invalid("the number of key and value heads", expected, shared.to_string()));
        }
        if config.head_dim == 0 || !config.head_dim.is_multiple_of(2) {
            let expected = "an even number from 2 on";
            return Err(self.invalid("the width of a head", expected, config.head_dim.to_string()));
        }
        if u64::from(heads) * u64::from(config.head_dim) > MAX_SIZE {
            let found = format!("{heads} heads of {}", config.head_dim);
            return Err(self.invalid("the width of all heads", "at most 268,435,456", found));
        }
        if config.num_layers > 10_000 {
            return Err(self.invalid(
                "the number of layers",
                "at most 10,000",
                config.num_layers.to_string(),
            ));
        }
        Ok(())
    }
}
