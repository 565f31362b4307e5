//! What tells the architectures apart: their tensors, what their configurations leave unsaid, and their relatives that
//! cannot be served.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use anaphora_model::{LoadFormat, ModelConfig, ModelSummary, Naming, RopeScaling, verify};
use common::{GgufSpec, Meta, TENSORS, check, message, tiny_config, tiny_gguf};
use serde_json::{Value as Json, json};

/// The summary of a `config.json`, or the message that refuses it.
fn read(architecture: &str, change: &Json) -> Result<ModelSummary, String> {
    let directory = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config["architectures"] = json!([architecture]);
    config.as_object_mut().unwrap().remove("tie_word_embeddings");
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    let file = directory.path().join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    verify(&file, LoadFormat::Dummy)
        .map_err(|error| error.to_string().replace(&*file.to_string_lossy(), "FILE"))
}

fn names(config: &ModelConfig, naming: Naming) -> Vec<String> {
    let mut names = config.expected_tensors(naming).into_iter().map(|tensor| tensor.name).collect::<Vec<_>>();
    names.sort();
    names
}

/// The tiny model's file, as one of another architecture.
fn renamed(architecture: &str) -> GgufSpec {
    let mut spec = tiny_gguf();
    for (key, _) in &mut spec.metadata {
        *key = key.replace("llama.", &format!("{architecture}."));
    }
    spec.set("general.architecture", Meta::Text(architecture.to_owned()));
    spec
}

fn add_norms(spec: &mut GgufSpec, norms: &[(&str, u64)]) {
    for &(name, size) in norms {
        spec.tensors.push((format!("blk.0.{name}.weight"), vec![size], 0, 4 * size));
    }
}

#[track_caller]
fn written(spec: &GgufSpec) -> Result<ModelSummary, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tiny.gguf");
    std::fs::write(&file, spec.bytes().0).unwrap();
    check(&file).map_err(|_| message(&file, directory.path()))
}

#[test]
fn qwen3_has_norms_on_its_heads() {
    let summary = read("Qwen3ForCausalLM", &json!({"head_dim": 6, "attention_bias": true})).unwrap();
    assert_eq!((summary.config.head_dim, summary.config.attention_bias), (6, true));
    assert_eq!(summary.config.sliding_window, None, "a window that is not used");
    let own = ["model.layers.0.self_attn.k_norm.weight", "model.layers.0.self_attn.q_norm.weight"];
    let found = names(&summary.config, Naming::HuggingFace);
    assert!(own.iter().all(|name| found.contains(&(*name).to_owned())), "{found:?}");
    assert_eq!(found.len(), TENSORS.len() + own.len() + 5, "four biases, and a head of its own");
    let silent = read("Qwen3ForCausalLM", &json!({"num_key_value_heads": 2})).unwrap();
    assert_eq!(silent.config.head_dim, 128);

    let mut spec = renamed("qwen3");
    add_norms(&mut spec, &[("attn_q_norm", 4), ("attn_k_norm", 4)]);
    let summary = written(&spec).unwrap();
    assert_eq!((summary.architecture.as_str(), summary.num_parameters), ("Qwen3ForCausalLM", 632 + 8));
    spec.tensors.pop();
    assert!(written(&spec).unwrap_err().starts_with(
        "tiny.gguf: tensor `blk.0.attn_k_norm.weight`: expected one of shape [4], found none. 1 of 13 tensors"
    ));
}

#[test]
fn gemma3_has_four_norms_in_a_layer_and_two_on_its_heads() {
    let mut spec = renamed("gemma3");
    spec.set("gemma3.attention.sliding_window", Meta::U32(16));
    let norms = [("attn_q_norm", 4), ("attn_k_norm", 4), ("post_attention_norm", 8), ("post_ffw_norm", 8)];
    add_norms(&mut spec, &norms);
    let summary = written(&spec).unwrap();
    assert_eq!((summary.architecture.as_str(), summary.num_parameters), ("Gemma3ForCausalLM", 632 + 24));
    assert_eq!(summary.config.sliding_window, Some(16));
    spec.remove("gemma3.attention.sliding_window");
    assert!(
        written(&spec).unwrap_err().contains("`gemma3.attention.sliding_window`: expected a whole number")
    );

    let config = read("Gemma3ForCausalLM", &json!({"head_dim": 4})).unwrap().config;
    let own = ["post_attention", "pre_feedforward", "post_feedforward", "input"];
    let found = names(&config, Naming::HuggingFace);
    for name in own {
        assert!(found.contains(&format!("model.layers.0.{name}_layernorm.weight")), "{found:?}");
    }
    assert_eq!(found.len(), TENSORS.len() + norms.len());
    assert_eq!(names(&config, Naming::Gguf).len(), found.len());
}

#[test]
fn both_generations_of_gemma3_configurations_are_read() {
    let config = |change| read("Gemma3ForCausalLM", &change).unwrap().config;
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let silent = config(json!({}));
    assert_eq!((silent.rope_theta, silent.rope_scaling, silent.head_dim), (1e6, None, 256));
    assert_eq!((silent.sliding_window, silent.tie_word_embeddings), (Some(4096), true));
    let old = config(json!({"rope_theta": 5e5, "rope_local_base_freq": 1e4, "rope_scaling": linear}));
    assert_eq!((old.rope_theta, old.rope_scaling), (5e5, Some(RopeScaling::Linear { factor: 8.0 })));
    let new = config(json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }}));
    assert_eq!((new.rope_theta, new.rope_scaling), (old.rope_theta, old.rope_scaling));
}

#[test]
fn what_is_not_honoured_is_refused() {
    let refused = |change| read("Gemma3ForCausalLM", &change).unwrap_err();
    assert!(
        refused(json!({"hidden_activation": "gelu"})).contains("hidden_activation gelu is not supported")
    );
    assert!(
        refused(json!({"use_bidirectional_attention": true})).contains("use_bidirectional_attention true")
    );
    let local = json!({"sliding_attention": {"rope_type": "linear", "factor": 2.0}});
    assert!(refused(json!({"rope_parameters": local})).contains("rotary scaling in sliding_attention"));
    assert!(refused(json!({"layer_types": ["chunked_attention"]})).contains("\"chunked_attention\""));
    assert!(refused(json!({"layer_types": []})).contains("expected a list of 1 names"));
}

#[test]
fn relatives_that_cannot_be_served_are_told_from_unknown_names() {
    let supported = "LlamaForCausalLM, MistralForCausalLM, Qwen3ForCausalLM, Gemma3ForCausalLM";
    for (name, hint) in [
        ("Qwen3MoeForCausalLM", "Mixtures of experts are not served yet: choose a dense model."),
        (
            "Gemma3ForConditionalGeneration",
            "Models that see or hear are not served yet: choose a text-only model of the family.",
        ),
        ("MambaForCausalLM", "Choose a model of a supported architecture."),
    ] {
        let expected = format!("FILE: architecture {name} is not supported. Supported: {supported}. {hint}");
        assert_eq!(read(name, &json!({})).unwrap_err(), expected);
    }
    for (name, hint) in [("qwen3moe", "choose a dense model"), ("qwen3vl", "choose a text-only model")] {
        assert!(written(&renamed(name)).unwrap_err().contains(hint), "{name}");
    }
}
