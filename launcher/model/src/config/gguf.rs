//! GGUF metadata: `llama.block_count` and so on. Ties and biases are not written there: they follow from which tensors
//! there are.

use super::{Architecture, ModelConfig, RopeScaling, Source};
use crate::Gguf;
use crate::error::ModelError;

pub(super) fn read(file: &Gguf) -> Result<ModelConfig, ModelError> {
    let source = Source { file: &file.path };
    let key = "general.architecture";
    let name = file.metadata.string(key).ok_or_else(|| source.invalid(key, "a name", "none"))?;
    let architecture =
        Architecture::from_gguf_name(name).ok_or_else(|| source.unknown_architecture(name, true))?;
    let keys = Keys { file, source: &source, name };
    keys.refuse_variants()?;
    let hidden_size = keys.size("embedding_length")?;
    let num_attention_heads = keys.size("attention.head_count")?;
    let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(hidden_size / num_attention_heads);
    if architecture == Architecture::Gemma3 {
        keys.check_gemma3()?;
    }
    if let Some(rotated) = keys.optional_size("rope.dimension_count")?
        && rotated != head_dim
    {
        let hint = "Choose another model.";
        return Err(source.unsupported("rotary dimension", rotated.to_string(), head_dim.to_string(), hint));
    }
    let embedding_rows = file.tensor("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    let vocab_size = match embedding_rows {
        Some(rows) => source.size("the rows of `token_embd.weight`", Some(rows), &rows.to_string())?,
        None => keys.size("vocab_size")?,
    };
    let config = ModelConfig {
        architecture,
        vocab_size,
        hidden_size,
        intermediate_size: keys.size("feed_forward_length")?,
        num_layers: keys.size("block_count")?,
        num_attention_heads,
        num_key_value_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        head_dim,
        norm_eps: keys.number("attention.layer_norm_rms_epsilon")?,
        max_context: keys.size("context_length")?,
        rope_theta: keys.optional_number("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: keys.rope_scaling()?,
        tie_word_embeddings: file.tensor("output.weight").is_none(),
        attention_bias: file.tensor("blk.0.attn_q.bias").is_some(),
        mlp_bias: file.tensor("blk.0.ffn_gate.bias").is_some(),
        sliding_window: keys.optional_size("attention.sliding_window")?,
        dtype: None,
        fp8_activations: None,
        eos_token_ids: ["eos", "eot", "eom"]
            .iter()
            .filter_map(|kind| file.metadata.u32(&format!("tokenizer.ggml.{kind}_token_id")))
            .collect(),
    };
    source.check(&config)?;
    Ok(config)
}

/// Typed access to the keys of one architecture.
struct Keys<'a> {
    file: &'a Gguf,
    source: &'a Source<'a>,
    /// The architecture's name, which is the keys' prefix.
    name: &'a str,
}

impl Keys<'_> {
    fn size(&self, key: &str) -> Result<u32, ModelError> {
        let size = self.optional_size(key)?;
        size.ok_or_else(|| self.source.invalid(&self.full(key), "a whole number", "nothing"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let key = self.full(key);
        let Some(value) = self.file.metadata.get(&key) else { return Ok(None) };
        self.source.size(&key, value.as_u64(), &value.to_string()).map(Some)
    }

    fn number(&self, key: &str) -> Result<f64, ModelError> {
        let number = self.optional_number(key)?;
        number.ok_or_else(|| self.source.invalid(&self.full(key), "a number", "nothing"))
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let key = self.full(key);
        let Some(value) = self.file.metadata.get(&key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| *number > 0.0 && number.is_finite());
        number.map(Some).ok_or_else(|| self.source.invalid(&key, "a positive number", value.to_string()))
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn rope_scaling(&self) -> Result<Option<RopeScaling>, ModelError> {
        if self.file.tensor("rope_freqs.weight").is_some() {
            return Ok(Some(RopeScaling::Factors));
        }
        match self.file.metadata.string(&self.full("rope.scaling.type")).unwrap_or("none") {
            "none" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: self.number("rope.scaling.factor")? })),
            other => {
                let supported = "none, linear, factors in `rope_freqs.weight`";
                Err(self.source.unsupported("rope scaling", other, supported, "Choose another model."))
            }
        }
    }

    /// What the shard reads besides.
    fn check_gemma3(&self) -> Result<(), ModelError> {
        self.size("attention.sliding_window")?;
        self.optional_size("attention.sliding_window_pattern")?;
        self.optional_number("rope.freq_base_swa")?;
        self.optional_number("attn_logit_softcapping")?;
        self.optional_number("final_logit_softcapping").map(drop)
    }

    /// Files that carry a supported name but are something else.
    fn refuse_variants(&self) -> Result<(), ModelError> {
        let parts = self.file.metadata.u32("split.count").unwrap_or(1);
        if parts > 1 {
            let hint = "Join the parts with `llama-gguf-split --merge`.";
            return Err(self.source.unsupported("a file in parts:", parts.to_string(), "1", hint));
        }
        let experts = self.file.metadata.u32(&self.full("expert_count")).unwrap_or(0);
        if experts > 0 {
            let hint = "Choose a dense model.";
            return Err(self.source.unsupported("a mixture of experts:", experts.to_string(), "none", hint));
        }
        Ok(())
    }
}
