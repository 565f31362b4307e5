//! GGUF files, whole and damaged.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use anaphora_model::{Gguf, LoadFormat, ModelError, verify};
use common::{GgufSpec, Meta, check, message, tiny_gguf};

/// The message for a file of these bytes.
#[track_caller]
fn failure(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tiny.gguf");
    std::fs::write(&file, bytes).unwrap();
    message(&file, directory.path())
}

#[track_caller]
fn spec_failure(change: impl FnOnce(&mut GgufSpec)) -> String {
    let mut spec = tiny_gguf();
    change(&mut spec);
    failure(&spec.bytes().0)
}

#[test]
fn a_whole_file_is_summed_up() {
    for version in [2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tiny.gguf");
        let spec = GgufSpec { version, ..tiny_gguf() };
        std::fs::write(&file, spec.bytes().0).unwrap();
        let summary = check(&file).unwrap();
        assert_eq!(summary.architecture, "LlamaForCausalLM");
        assert_eq!(summary.num_parameters, 632);
        assert_eq!(summary.bytes, 632 * 4);
        assert_eq!(
            (summary.max_context, summary.num_attention_heads, summary.num_key_value_heads),
            (64, 2, 1)
        );
        assert_eq!(summary.config.head_dim, 4);
        assert_eq!(summary.config.eos_token_ids, [1]);
        assert!(summary.config.tie_word_embeddings);
        let read = Gguf::read(&file).unwrap();
        assert_eq!(read.tensor("blk.0.ffn_up.weight").unwrap().shape, [12, 8]);
        assert_eq!(read.metadata.strings("tokenizer.ggml.tokens").unwrap(), ["a", "b"]);
        assert_eq!(read.metadata.bool("tokenizer.ggml.add_bos_token"), Some(true));
    }
}

#[test]
fn an_alignment_of_its_own_is_honoured() {
    let mut spec = tiny_gguf();
    spec.alignment = 128;
    spec.set("general.alignment", Meta::U32(128));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tiny.gguf");
    std::fs::write(&file, spec.bytes().0).unwrap();
    assert_eq!(Gguf::read(&file).unwrap().data_offset % 128, 0);
    check(&file).unwrap();
}

#[test]
fn biases_ties_and_factors_follow_from_the_tensors() {
    let mut spec = tiny_gguf();
    for (name, shape) in [
        ("output.weight", vec![16, 8]),
        ("rope_freqs.weight", vec![2]),
        ("blk.0.attn_q.bias", vec![8]),
        ("blk.0.attn_k.bias", vec![4]),
        ("blk.0.attn_v.bias", vec![4]),
        ("blk.0.attn_output.bias", vec![8]),
    ] {
        let num_bytes = 4 * shape.iter().product::<u64>();
        spec.tensors.push((name.to_owned(), shape, 0, num_bytes));
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tiny.gguf");
    std::fs::write(&file, spec.bytes().0).unwrap();
    let config = check(&file).unwrap().config;
    assert!(config.attention_bias && !config.mlp_bias && !config.tie_word_embeddings);
    assert_eq!(config.rope_scaling, Some(anaphora_model::RopeScaling::Factors));
}

#[test]
fn a_dummy_load_asks_for_no_tensors() {
    let mut spec = tiny_gguf();
    spec.tensors.clear();
    spec.set("llama.vocab_size", Meta::U32(16));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tiny.gguf");
    std::fs::write(&file, spec.bytes().0).unwrap();
    let summary = verify(&file, LoadFormat::Dummy).unwrap();
    assert_eq!((summary.num_parameters, summary.bytes), (632, 0));
}

#[test]
fn every_truncation_is_an_error_and_says_what_is_missing() {
    let (bytes, head) = tiny_gguf().bytes();
    // The last tensor (`output_norm.weight`, 32 bytes) ends the file; there is no padding behind it.
    for length in (0..head).chain((head..bytes.len()).step_by(31)) {
        let text = failure(&bytes[..length]);
        let cut = text.contains("download it again");
        assert!(cut && text.starts_with("tiny.gguf: "), "cut to {length} bytes: {text}");
    }
    assert_eq!(
        failure(&bytes[..bytes.len() - 1024]),
        "tiny.gguf: tensor `blk.0.ffn_gate.weight`: expected a file of at least 3,680 bytes, found 2,656 bytes. The \
         file is 1,024 bytes shorter than its header says: download it again."
    );
}

#[test]
fn no_flipped_byte_in_the_head_panics() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tiny.gguf");
    let (bytes, head) = tiny_gguf().bytes();
    let (mut refused, mut tried) = (0, 0);
    for (position, mask) in (0..head).zip([0x01, 0x80, 0xFF].into_iter().cycle()) {
        let mut damaged = bytes.clone();
        damaged[position] ^= mask;
        std::fs::write(&file, damaged).unwrap();
        tried += 1;
        refused += u32::from(check(&file).is_err());
    }
    // Some flips only change a number that nothing contradicts, as the context length.
    assert!(refused * 10 > tried * 8, "{refused} of {tried} were refused");
}

#[test]
fn heads_that_cannot_be_are_explained() {
    let (whole, head) = tiny_gguf().bytes();
    let patched = |position: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[position..position + value.len()].copy_from_slice(value);
        failure(&bytes)
    };
    assert_eq!(
        patched(0, b"GGML"),
        "tiny.gguf: the first four bytes: expected `GGUF`, found `GGML`. The file is damaged: download it again."
    );
    assert_eq!(
        patched(4, &1u32.to_le_bytes()),
        "tiny.gguf: GGUF version 1 is not supported. Supported: 2, 3. Convert the model again with a current llama.cpp."
    );
    assert_eq!(
        patched(4, &3u32.to_be_bytes()),
        "tiny.gguf: GGUF version 50331648 is not supported. Supported: 2, 3. The file is big-endian: convert it to \
         little-endian."
    );
    assert_eq!(
        patched(8, &u64::MAX.to_le_bytes()),
        "tiny.gguf: the tensor count: expected at most 114, for which the file has room, found \
         18,446,744,073,709,551,615. The file is damaged: download it again."
    );
    assert_eq!(
        patched(24, &(1u64 << 40).to_le_bytes()),
        "tiny.gguf: a metadata key: expected a string of at most 67,108,864 bytes, found a length of \
         1,099,511,627,776. The file is damaged: download it again."
    );
    // The last field of the head is the last tensor's offset.
    assert_eq!(
        patched(head - 8, &7u64.to_le_bytes()),
        "tiny.gguf: tensor `output_norm.weight`: expected an offset that is a multiple of 32, found 7. The file is \
         damaged: download it again."
    );
    assert_eq!(
        patched(head - 8, &0u64.to_le_bytes()),
        "tiny.gguf: tensor `output_norm.weight`: expected data at or after byte 1,664, where `token_embd.weight` ends, \
         found byte 1,152. The file is damaged: download it again."
    );
    assert_eq!(
        patched(head - 8, &(1u64 << 40).to_le_bytes()),
        "tiny.gguf: tensor `output_norm.weight`: expected a file of at least 1,099,511,628,960 bytes, found 3,680 \
         bytes. The file is 1,099,511,625,280 bytes shorter than its header says: download it again."
    );
}

#[test]
fn tensors_that_do_not_fit_the_model_are_explained() {
    let types = "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_XS, IQ3_XXS, \
                 IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4";
    assert_eq!(
        spec_failure(|spec| spec.tensors.retain(|tensor| tensor.0 != "blk.0.attn_v.weight")),
        "tiny.gguf: tensor `blk.0.attn_v.weight`: expected one of shape [4, 8], found none. 1 of 11 tensors are \
         missing: download the model again."
    );
    assert_eq!(
        spec_failure(|spec| spec.tensor("blk.0.attn_k.weight").1 = vec![8, 4]),
        "tiny.gguf: tensor `blk.0.attn_k.weight`: expected shape [4, 8], found [8, 4]. The configuration and the \
         weights are not of the same model."
    );
    assert_eq!(
        spec_failure(|spec| spec.tensor("output_norm.weight").2 = 26),
        format!(
            "tiny.gguf: tensor `output_norm.weight`: type I32 is not supported. Supported: {types}. Convert the model \
             to one of these types."
        )
    );
    assert_eq!(
        spec_failure(|spec| spec.tensor("output_norm.weight").2 = 4),
        format!(
            "tiny.gguf: tensor `output_norm.weight`: type number 4 is not supported. Supported: {types}. Quantise the \
             model to one of these types, or, if it should be one: the file is damaged, download it again."
        )
    );
    assert_eq!(
        spec_failure(|spec| spec.tensor("output_norm.weight").2 = 2),
        "tiny.gguf: tensor `output_norm.weight`: expected rows of a multiple of 32 elements (Q4_0), found shape [8]. \
         The file is damaged: download it again."
    );
    assert_eq!(
        spec_failure(|spec| spec.tensors.push(("blk.0.attn_q_norm.weight".to_owned(), vec![4], 0, 16))),
        "tiny.gguf: a LlamaForCausalLM with tensor `blk.0.attn_q_norm.weight` is not supported. Supported: the 11 \
         tensors that its configuration asks for. The model is of another architecture, or the files do not belong \
         together."
    );
    assert_eq!(
        spec_failure(|spec| spec.tensor("blk.0.ffn_up.weight").0 = "output_norm.weight".to_owned()),
        "tiny.gguf: tensor `output_norm.weight`: expected each name once, found it twice. The file is damaged: \
         download it again."
    );
}

#[test]
fn configurations_that_cannot_be_served_are_explained() {
    assert_eq!(
        spec_failure(|spec| spec.set("general.architecture", Meta::Text("mamba".to_owned()))),
        "tiny.gguf: architecture mamba is not supported. Supported: llama, qwen3, gemma3. Choose a model of a supported \
         architecture."
    );
    assert_eq!(
        spec_failure(|spec| spec.remove("llama.block_count")),
        "tiny.gguf: `llama.block_count`: expected a whole number, found nothing. Restore the model's own configuration."
    );
    assert_eq!(
        spec_failure(|spec| spec.set("llama.attention.head_count", Meta::U32(0))),
        "tiny.gguf: `llama.attention.head_count`: expected a whole number from 1 to 268,435,456, found 0. Restore the \
         model's own configuration."
    );
    assert_eq!(
        spec_failure(|spec| spec.set("llama.attention.head_count_kv", Meta::U32(3))),
        "tiny.gguf: `the number of key and value heads`: expected a divisor of the 2 query heads, found 3. Restore the \
         model's own configuration."
    );
    assert_eq!(
        spec_failure(|spec| spec.set("llama.rope.scaling.type", Meta::Text("yarn".to_owned()))),
        "tiny.gguf: rope scaling yarn is not supported. Supported: none, linear, factors in `rope_freqs.weight`. \
         Choose another model."
    );
    assert_eq!(
        spec_failure(|spec| spec.set("split.count", Meta::U32(3))),
        "tiny.gguf: a file in parts: 3 is not supported. Supported: 1. Join the parts with `llama-gguf-split --merge`."
    );
    assert_eq!(
        spec_failure(|spec| spec.set("llama.expert_count", Meta::U32(8))),
        "tiny.gguf: a mixture of experts: 8 is not supported. Supported: none. Choose a dense model."
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = check(std::path::Path::new("/nowhere/at/all.gguf")).unwrap_err();
    assert!(matches!(error, ModelError::Missing { .. }));
    assert_eq!(
        error.to_string(),
        "/nowhere/at/all.gguf: there is nothing here. Expected a GGUF file, or a directory with config.json and \
         safetensors. Check the path."
    );
}
