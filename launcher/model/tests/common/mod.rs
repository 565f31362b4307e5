//! Tiny model files, whole or damaged as a test asks.

#![allow(dead_code, reason = "each test file uses its part of this module")]

use std::path::{Path, PathBuf};

use anaphora_model::{LoadFormat, ModelError, ModelSummary, verify};
use serde_json::{Value as Json, json};

/// A metadata value of a GGUF file.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
}

/// What goes into a GGUF file.
#[derive(Clone)]
pub(crate) struct GgufSpec {
    pub(crate) version: u32,
    pub(crate) metadata: Vec<(String, Meta)>,
    /// Name, shape (outermost first), type number, bytes of data.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, u64)>,
    pub(crate) alignment: u64,
}

/// `(name, shape)` of every tensor of the tiny model: 1 layer, 2 heads of 4 over 1 key head, vocabulary of 16.
pub(crate) const TENSORS: &[(&str, &str, &[u64])] = &[
    ("model.embed_tokens.weight", "token_embd.weight", &[16, 8]),
    ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", &[8]),
    ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", &[8, 8]),
    ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", &[4, 8]),
    ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", &[4, 8]),
    ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", &[8, 8]),
    ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", &[8]),
    ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight", &[12, 8]),
    ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", &[12, 8]),
    ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", &[8, 12]),
    ("model.norm.weight", "output_norm.weight", &[8]),
];

pub(crate) fn tiny_gguf() -> GgufSpec {
    let size = |key: &str, value| (format!("llama.{key}"), Meta::U32(value));
    GgufSpec {
        version: 3,
        alignment: 32,
        metadata: vec![
            ("general.architecture".to_owned(), Meta::Text("llama".to_owned())),
            size("block_count", 1),
            size("context_length", 64),
            size("embedding_length", 8),
            size("feed_forward_length", 12),
            size("attention.head_count", 2),
            size("attention.head_count_kv", 1),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), Meta::F32(1e-5)),
            ("tokenizer.ggml.tokens".to_owned(), Meta::Texts(vec!["a".to_owned(), "b".to_owned()])),
            ("tokenizer.ggml.add_bos_token".to_owned(), Meta::Bool(true)),
            ("tokenizer.ggml.eos_token_id".to_owned(), Meta::U32(1)),
        ],
        tensors: TENSORS
            .iter()
            .map(|(_, name, shape)| (name.to_string(), shape.to_vec(), 0, 4 * shape.iter().product::<u64>()))
            .collect(),
    }
}

impl GgufSpec {
    pub(crate) fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, u32, u64) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).expect("the tiny model has this tensor")
    }

    pub(crate) fn set(&mut self, key: &str, value: Meta) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.metadata.retain(|(other, _)| other != key);
    }

    /// The bytes of the file, and how many of them are head.
    pub(crate) fn bytes(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            match value {
                Meta::U32(number) => tagged(&mut out, 4, &number.to_le_bytes()),
                Meta::F32(number) => tagged(&mut out, 6, &number.to_le_bytes()),
                Meta::Bool(flag) => tagged(&mut out, 7, &[u8::from(*flag)]),
                Meta::Text(value) => {
                    tagged(&mut out, 8, &[]);
                    text(&mut out, value);
                }
                Meta::Texts(values) => {
                    tagged(&mut out, 9, &8u32.to_le_bytes());
                    out.extend((values.len() as u64).to_le_bytes());
                    values.iter().for_each(|value| text(&mut out, value));
                }
            }
        }
        let mut offset = 0u64;
        for (name, shape, type_id, num_bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(type_id.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += num_bytes.next_multiple_of(self.alignment);
        }
        let head = out.len();
        let data = head.next_multiple_of(self.alignment as usize);
        out.resize(data + offset as usize, 0);
        (out, head)
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

fn tagged(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    out.extend(tag.to_le_bytes());
    out.extend(bytes);
}

pub(crate) fn tiny_config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    })
}

/// A table of safetensors, and where its data ends.
pub(crate) fn tiny_table(dtype: &str, bytes_each: u64, names: &[&str]) -> (Json, u64) {
    let mut table = serde_json::Map::new();
    table.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, _, shape) in TENSORS.iter().filter(|(name, ..)| names.is_empty() || names.contains(name)) {
        let from = end;
        end += bytes_each * shape.iter().product::<u64>();
        table.insert(name.to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": [from, end]}));
    }
    (Json::Object(table), end)
}

pub(crate) fn safetensors_bytes(table: &Json, data: u64) -> Vec<u8> {
    let head = table.to_string();
    let mut out = (head.len() as u64).to_le_bytes().to_vec();
    out.extend(head.as_bytes());
    out.resize(out.len() + data as usize, 0);
    out
}

/// A directory with a whole tiny model in one safetensors file.
pub(crate) fn write_tiny_directory(directory: &Path) -> PathBuf {
    std::fs::write(directory.join("config.json"), tiny_config().to_string()).unwrap();
    let (table, data) = tiny_table("BF16", 2, &[]);
    let file = directory.join("model.safetensors");
    std::fs::write(&file, safetensors_bytes(&table, data)).unwrap();
    file
}

pub(crate) fn check(path: &Path) -> Result<ModelSummary, ModelError> {
    verify(path, LoadFormat::Auto)
}

/// The message of a failure, with the directory left out.
#[track_caller]
pub(crate) fn message(path: &Path, directory: &Path) -> String {
    let error = check(path).expect_err("the model is damaged");
    error
        .to_string()
        .replace(&format!("{}/", directory.display()), "")
        .replace(&directory.display().to_string(), "DIR")
}
