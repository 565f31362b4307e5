//! Which tensors a model of an architecture must have, and of what shape.

use crate::config::{ModelConfig, RopeScaling};

/// Who named the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`
    HuggingFace,
    /// `blk.0.attn_q.weight`
    Gguf,
}

/// A tensor that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
}

/// A dimension by what it counts.
#[derive(Debug, Clone, Copy)]
enum Dim {
    Vocab,
    Hidden,
    Intermediate,
    /// All query heads, side by side.
    Queries,
    /// All key, or all value heads, side by side.
    KeysValues,
    /// One head.
    Head,
    /// One rotary frequency for each pair in a head.
    Frequencies,
}

/// When a tensor is there.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    Untied,
    AttentionBias,
    MlpBias,
    HeadNorms,
    /// Attention and MLP have a norm before them only…
    NoOuterNorms,
    /// … or one behind them too.
    OuterNorms,
    FactorScaling,
}

struct Row {
    hugging_face: &'static str,
    gguf: &'static str,
    shape: &'static [Dim],
    when: When,
}

const fn row(hugging_face: &'static str, gguf: &'static str, shape: &'static [Dim], when: When) -> Row {
    Row { hugging_face, gguf, shape, when }
}

use Dim::{Frequencies, Head, Hidden, Intermediate, KeysValues, Queries, Vocab};
use When::{Always, AttentionBias, FactorScaling, HeadNorms, MlpBias, NoOuterNorms, OuterNorms, Untied};

/// Outside the layers. An empty name: that naming has no such tensor.
const MODEL: &[Row] = &[
    row("model.embed_tokens.weight", "token_embd.weight", &[Vocab, Hidden], Always),
    row("model.norm.weight", "output_norm.weight", &[Hidden], Always),
    row("lm_head.weight", "output.weight", &[Vocab, Hidden], Untied),
    row("", "rope_freqs.weight", &[Frequencies], FactorScaling),
];

/// In each layer, behind `model.layers.N.` or `blk.N.`.
const LAYER: &[Row] = &[
    row("input_layernorm.weight", "attn_norm.weight", &[Hidden], Always),
    row("self_attn.q_proj.weight", "attn_q.weight", &[Queries, Hidden], Always),
    row("self_attn.k_proj.weight", "attn_k.weight", &[KeysValues, Hidden], Always),
    row("self_attn.v_proj.weight", "attn_v.weight", &[KeysValues, Hidden], Always),
    row("self_attn.o_proj.weight", "attn_output.weight", &[Hidden, Queries], Always),
    row("self_attn.q_proj.bias", "attn_q.bias", &[Queries], AttentionBias),
    row("self_attn.k_proj.bias", "attn_k.bias", &[KeysValues], AttentionBias),
    row("self_attn.v_proj.bias", "attn_v.bias", &[KeysValues], AttentionBias),
    row("self_attn.o_proj.bias", "attn_output.bias", &[Hidden], AttentionBias),
    row("self_attn.q_norm.weight", "attn_q_norm.weight", &[Head], HeadNorms),
    row("self_attn.k_norm.weight", "attn_k_norm.weight", &[Head], HeadNorms),
    row("post_attention_layernorm.weight", "ffn_norm.weight", &[Hidden], NoOuterNorms),
    row("post_attention_layernorm.weight", "post_attention_norm.weight", &[Hidden], OuterNorms),
    row("pre_feedforward_layernorm.weight", "ffn_norm.weight", &[Hidden], OuterNorms),
    row("post_feedforward_layernorm.weight", "post_ffw_norm.weight", &[Hidden], OuterNorms),
    row("mlp.gate_proj.weight", "ffn_gate.weight", &[Intermediate, Hidden], Always),
    row("mlp.up_proj.weight", "ffn_up.weight", &[Intermediate, Hidden], Always),
    row("mlp.down_proj.weight", "ffn_down.weight", &[Hidden, Intermediate], Always),
    row("mlp.gate_proj.bias", "ffn_gate.bias", &[Intermediate], MlpBias),
    row("mlp.up_proj.bias", "ffn_up.bias", &[Intermediate], MlpBias),
    row("mlp.down_proj.bias", "ffn_down.bias", &[Hidden], MlpBias),
];

impl ModelConfig {
    /// Every tensor that the files of this model must hold, in the order of a forward pass.
    pub fn expected_tensors(&self, naming: Naming) -> Vec<ExpectedTensor> {
        let (model, layer, prefix) =
            (MODEL.iter(), LAYER, if naming == Naming::Gguf { "blk" } else { "model.layers" });
        let outside = model.filter_map(|row| self.expect(row, naming, ""));
        let inside = (0..self.num_layers).flat_map(|index| {
            let prefix = format!("{prefix}.{index}.");
            layer.iter().filter_map(move |row| self.expect(row, naming, &prefix))
        });
        outside.chain(inside).collect()
    }

    /// Whether files may hold this tensor besides the expected ones: what is tied, or computed anew.
    pub fn ignores_tensor(&self, name: &str) -> bool {
        let tied = self.tie_word_embeddings && name == "lm_head.weight";
        tied || name.ends_with("rotary_emb.inv_freq")
    }

    fn expect(&self, row: &Row, naming: Naming, prefix: &str) -> Option<ExpectedTensor> {
        let there = match row.when {
            Always => true,
            Untied => !self.tie_word_embeddings,
            AttentionBias => self.attention_bias,
            MlpBias => self.mlp_bias,
            HeadNorms => self.architecture.has_head_norms(),
            NoOuterNorms => !self.architecture.has_outer_norms(),
            OuterNorms => self.architecture.has_outer_norms(),
            FactorScaling => self.rope_scaling == Some(RopeScaling::Factors),
        };
        let suffix = if naming == Naming::Gguf { row.gguf } else { row.hugging_face };
        let name = format!("{prefix}{suffix}");
        let shape = row.shape.iter().map(|&dim| self.size(dim)).collect();
        (there && !suffix.is_empty()).then_some(ExpectedTensor { name, shape })
    }

    fn size(&self, dim: Dim) -> u64 {
        let head = u64::from(self.head_dim);
        match dim {
            Vocab => self.vocab_size.into(),
            Hidden => self.hidden_size.into(),
            Intermediate => self.intermediate_size.into(),
            Queries => u64::from(self.num_attention_heads) * head,
            KeysValues => u64::from(self.num_key_value_heads) * head,
            Head => head,
            Frequencies => head / 2,
        }
    }
}
