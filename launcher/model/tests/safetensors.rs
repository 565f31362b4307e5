//! Directories with `config.json` and safetensors, whole and damaged.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use std::path::Path;

use anaphora_model::{Architecture, Fp8Activations, LoadFormat, RopeScaling, verify};
use common::{TENSORS, check, message, safetensors_bytes, tiny_config, tiny_table, write_tiny_directory};
use serde_json::{Value as Json, json};

/// The message for a tiny directory after `change`.
#[track_caller]
fn failure(change: impl FnOnce(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    write_tiny_directory(directory.path());
    change(directory.path());
    message(directory.path(), directory.path())
}

/// The message for a tiny directory whose table of tensors is changed.
#[track_caller]
fn table_failure(change: impl FnOnce(&mut Json)) -> String {
    failure(|directory| {
        let (mut table, data) = tiny_table("BF16", 2, &[]);
        change(&mut table);
        std::fs::write(directory.join("model.safetensors"), safetensors_bytes(&table, data)).unwrap();
    })
}

/// The message for a tiny directory whose configuration is changed.
#[track_caller]
fn config_failure(key: &str, value: Json) -> String {
    failure(|directory| {
        let mut config = tiny_config();
        config[key] = value;
        std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    })
}

#[test]
fn a_whole_directory_is_summed_up() {
    let directory = tempfile::tempdir().unwrap();
    let file = write_tiny_directory(directory.path());
    let summary = check(directory.path()).unwrap();
    assert_eq!((summary.num_parameters, summary.bytes), (632, 632 * 2));
    assert_eq!(summary.files, [directory.path().join("config.json"), file]);
    assert_eq!(summary.config.architecture, Architecture::Llama);
}

#[test]
fn a_sharded_directory_is_read_through_its_index() {
    let directory = tempfile::tempdir().unwrap();
    let file = write_tiny_directory(directory.path());
    std::fs::remove_file(file).unwrap();
    let names = TENSORS.iter().map(|(name, ..)| *name).collect::<Vec<_>>();
    let mut weight_map = serde_json::Map::new();
    for (index, names) in names.chunks(6).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", index + 1);
        let (table, data) = tiny_table("F32", 4, names);
        std::fs::write(directory.path().join(&file), safetensors_bytes(&table, data)).unwrap();
        weight_map.extend(names.iter().map(|name| (name.to_string(), Json::from(file.as_str()))));
    }
    // A file beside them that the index does not name is none of the model's business.
    std::fs::write(directory.path().join("consolidated.safetensors"), "not even a header").unwrap();
    let index = directory.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"metadata": {}, "weight_map": weight_map}).to_string()).unwrap();
    let summary = check(directory.path()).unwrap();
    assert_eq!((summary.num_parameters, summary.bytes, summary.files.len()), (632, 632 * 4, 3));

    std::fs::remove_file(directory.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_eq!(
        message(directory.path(), directory.path()),
        "model-00002-of-00002.safetensors: there is no such file. Expected a file that model.safetensors.index.json \
         names. Download the model again."
    );
    std::fs::write(&index, json!({"weight_map": {"a": "../../etc/passwd"}}).to_string()).unwrap();
    assert_eq!(
        message(directory.path(), directory.path()),
        "model.safetensors.index.json: `weight_map`: expected names of files in the same directory, found \
         `../../etc/passwd`. The file is damaged: download it again."
    );
}

#[test]
fn a_dummy_load_asks_for_a_configuration_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    std::fs::write(&file, tiny_config().to_string()).unwrap();
    for path in [directory.path(), &file] {
        let summary = verify(path, LoadFormat::Dummy).unwrap();
        assert_eq!((summary.num_parameters, summary.bytes), (632, 0));
    }
}

#[test]
fn configurations_of_both_generations_are_read() {
    let config = |change: Json| {
        let directory = tempfile::tempdir().unwrap();
        let mut config = tiny_config();
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        let file = directory.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        verify(&file, LoadFormat::Dummy).unwrap().config
    };
    let rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let llama3 = Some(RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    });
    let mut nested = rope.clone();
    nested["rope_theta"] = json!(500000.0);

    let plain = config(json!({}));
    assert_eq!((plain.rope_theta, plain.rope_scaling, plain.head_dim), (10_000.0, None, 4));
    let old =
        config(json!({"rope_theta": 500000, "rope_scaling": rope, "eos_token_id": [5, 7], "head_dim": 16}));
    assert_eq!((old.rope_theta, old.rope_scaling, old.head_dim), (500_000.0, llama3, 16));
    assert_eq!(old.eos_token_ids, [5, 7]);
    let new = config(json!({"rope_parameters": nested, "eos_token_id": 2, "dtype": "bfloat16"}));
    assert_eq!((new.rope_theta, new.rope_scaling), (500_000.0, llama3));
    assert_eq!((new.eos_token_ids.as_slice(), new.dtype.as_deref()), ([2].as_slice(), Some("bfloat16")));
    let linear =
        config(json!({"rope_scaling": {"type": "linear", "factor": 2}, "num_key_value_heads": null}));
    assert_eq!(linear.rope_scaling, Some(RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(linear.num_key_value_heads, 2);
    let mistral = config(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}));
    assert_eq!((mistral.architecture, mistral.sliding_window), (Architecture::Mistral, Some(4096)));
}

#[test]
fn every_truncation_is_an_error_and_says_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let file = write_tiny_directory(directory.path());
    let bytes = std::fs::read(&file).unwrap();
    let head = bytes.len() - 632 * 2;
    for length in (0..head).chain((head..bytes.len()).step_by(31)) {
        std::fs::write(&file, &bytes[..length]).unwrap();
        let text = message(directory.path(), directory.path());
        let named = text.starts_with("model.safetensors: ") && text.contains("shorter than its header says");
        assert!(named, "cut to {length} bytes: {text}");
    }
    std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    assert_eq!(
        message(directory.path(), directory.path()),
        format!(
            "model.safetensors: tensor `model.layers.0.mlp.down_proj.weight`: expected a file of at least {} bytes, \
             found {} bytes. The file is 100 bytes shorter than its header says: download it again.",
            thousands(bytes.len()),
            thousands(bytes.len() - 100)
        )
    );
}

fn thousands(number: usize) -> String {
    format!("{},{:03}", number / 1000, number % 1000)
}

#[test]
fn no_flipped_byte_in_the_head_panics() {
    let directory = tempfile::tempdir().unwrap();
    let file = write_tiny_directory(directory.path());
    let bytes = std::fs::read(&file).unwrap();
    let head = bytes.len() - 632 * 2;
    for (position, mask) in (0..head).zip([0x01, 0x20, 0x02, 0x80].into_iter().cycle()) {
        let mut damaged = bytes.clone();
        damaged[position] ^= mask;
        std::fs::write(&file, damaged).unwrap();
        let _ = check(directory.path());
    }
}

#[test]
fn tables_that_cannot_be_are_explained() {
    let norm = "model.norm.weight";
    assert_eq!(
        table_failure(|table| table[norm]["data_offsets"] = json!([1200, 1264])),
        "model.safetensors: tensor `model.norm.weight`: expected data from byte 1,248, where the tensor before it \
         ends, found byte 1,200. The file is damaged: download it again."
    );
    assert_eq!(
        table_failure(|table| table[norm]["shape"] = json!([9])),
        "model.safetensors: tensor `model.norm.weight`: expected 18 bytes (BF16 [9]), found bytes 1,248 to 1,264. The \
         file is damaged: download it again."
    );
    assert_eq!(
        table_failure(|table| table[norm]["dtype"] = json!("Q4")),
        "model.safetensors: tensor `model.norm.weight`: expected a type of the safetensors format, found `Q4`. The \
         file is damaged: download it again."
    );
    assert_eq!(
        table_failure(|table| table[norm]["shape"] = json!([u64::MAX, u64::MAX])),
        "model.safetensors: tensor `model.norm.weight`: expected a shape of a whole number of bytes below 2^61, found \
         BF16 [18446744073709551615, 18446744073709551615]. The file is damaged: download it again."
    );
    assert_eq!(
        failure(|directory| {
            let file = directory.join("model.safetensors");
            let mut bytes = std::fs::read(&file).unwrap();
            bytes.push(0);
            std::fs::write(file, bytes).unwrap();
        }),
        "model.safetensors: the end of the file: expected 2,334 bytes, where the last tensor ends, found 2,335 bytes. \
         The file is damaged: download it again."
    );
    assert_eq!(
        failure(|directory| {
            std::fs::write(
                directory.join("model.safetensors"),
                [b"\xff\xff\xff\xff\0\0\0\0".as_slice(), &[0; 64]].concat(),
            )
            .unwrap();
        }),
        "model.safetensors: the length of the header: expected at most 100,000,000 bytes, found 4,294,967,295. The \
         file is damaged: download it again."
    );
}

#[test]
fn tensors_that_do_not_fit_the_model_are_explained() {
    assert_eq!(
        config_failure("num_hidden_layers", json!(2)),
        "model.safetensors: tensor `model.layers.1.input_layernorm.weight`: expected one of shape [8], found none. 9 \
         of 20 tensors are missing: download the model again."
    );
    assert_eq!(
        config_failure("intermediate_size", json!(24)),
        "model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight`: expected shape [24, 8], found [12, 8]. The \
         configuration and the weights are not of the same model."
    );
    assert_eq!(
        config_failure("tie_word_embeddings", json!(false)),
        "model.safetensors: tensor `lm_head.weight`: expected one of shape [16, 8], found none. 1 of 12 tensors are \
         missing: download the model again."
    );
    assert_eq!(
        failure(|directory| {
            let (table, data) = tiny_table("F8_E4M3", 1, &[]);
            std::fs::write(directory.join("model.safetensors"), safetensors_bytes(&table, data)).unwrap();
        }),
        "model.safetensors: tensor `model.embed_tokens.weight`: type F8_E4M3 is not supported. Supported: F64, F32, \
         F16, BF16. Convert the model to one of these types."
    );
}

#[test]
fn configurations_that_cannot_be_served_are_explained() {
    assert_eq!(
        config_failure("architectures", json!(["GPT2LMHeadModel"])),
        "config.json: architecture GPT2LMHeadModel is not supported. Supported: LlamaForCausalLM, \
         MistralForCausalLM, Qwen3ForCausalLM, Gemma3ForCausalLM. Choose a model of a supported architecture."
    );
    assert_eq!(
        config_failure("hidden_size", json!("8")),
        "config.json: `hidden_size`: expected a whole number from 1 to 268,435,456, found \"8\". Restore the model's \
         own configuration."
    );
    assert_eq!(
        config_failure("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        "config.json: rope scaling yarn is not supported. Supported: default, linear, llama3. Choose another model."
    );
    assert_eq!(
        config_failure("rope_parameters", json!({"rope_type": "linear", "factor": -1})),
        "config.json: `rope_parameters.factor`: expected a positive number, found -1. Restore the model's own \
         configuration."
    );
    assert_eq!(
        config_failure("hidden_act", json!("gelu")),
        "config.json: hidden_act gelu is not supported. Supported: silu. Choose another model."
    );
    assert_eq!(
        config_failure("torch_dtype", json!("float64")),
        "config.json: dtype float64 is not supported. Supported: float32, bfloat16, float16. Choose another model."
    );
    assert_eq!(
        config_failure("quantization_config", json!({"quant_method": "gptq"})),
        "config.json: quantization_config: this form of gptq is not supported. Supported: FP8 (e4m3) weights with a \
         scale per tensor or per channel and activations in FP8, by fp8, compressed-tensors or modelopt. Use the \
         original weights, or a GGUF file."
    );
    assert_eq!(
        failure(|directory| std::fs::write(directory.join("config.json"), "{").unwrap()),
        "config.json: `the whole file`: expected a JSON object, found EOF while parsing an object at line 1 column 1. \
         Restore the model's own configuration."
    );
}

#[test]
fn files_that_are_not_there_are_named() {
    let bare = tempfile::tempdir().unwrap();
    assert_eq!(
        message(bare.path(), bare.path()),
        "config.json: there is no such file. Expected the model's configuration. Check the path, or download the model \
         again."
    );
    std::fs::write(bare.path().join("m.gguf"), "").unwrap();
    assert_eq!(
        message(bare.path(), bare.path()),
        "config.json: there is no such file. Expected the model's configuration. To serve the GGUF file in it, give \
         its path: m.gguf."
    );
    assert_eq!(
        failure(|directory| std::fs::remove_file(directory.join("model.safetensors")).unwrap()),
        "DIR: there is none. Expected weights in *.safetensors files. Download the model again, or give --load-format \
         dummy."
    );
    assert_eq!(
        failure(|directory| {
            std::fs::rename(directory.join("model.safetensors"), directory.join("pytorch_model.bin"))
                .unwrap();
        }),
        "DIR: only `pytorch_model.bin`, which is a pickle. Expected weights in *.safetensors files. Pickles run code \
         when they are read and are never loaded. Convert the model to safetensors: `transformers`' save_pretrained \
         writes them."
    );
}

/// Names and shapes.
type Scales = Vec<(String, Vec<u64>)>;

/// A directory in FP8 with a scale per tensor, after `change` to its scales.
fn fp8_directory(
    directory: &Path,
    quantization: &Json,
    change: impl FnOnce(&mut Scales),
) -> Result<anaphora_model::ModelSummary, anaphora_model::ModelError> {
    let mut config = tiny_config();
    config["quantization_config"] = quantization.clone();
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let projections =
        TENSORS.iter().map(|(name, ..)| *name).filter(|name| name.contains("proj")).collect::<Vec<_>>();
    let mut scales = Scales::new();
    for name in &projections {
        scales.push((format!("{name}_scale"), vec![]));
        scales.push((name.replace(".weight", ".input_scale"), vec![1]));
    }
    scales.push(("model.layers.0.self_attn.k_proj.k_scale".to_owned(), vec![]));
    scales.push(("model.layers.0.self_attn.q_scale".to_owned(), vec![]));
    change(&mut scales);
    let (mut table, mut end) = (serde_json::Map::new(), 0);
    let mut add = |name: &str, dtype: &str, shape: &[u64], width: u64| {
        let size = width * shape.iter().product::<u64>();
        table.insert(
            name.to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}),
        );
        end += size;
    };
    for (name, _, shape) in TENSORS {
        let (dtype, width) = if projections.contains(name) { ("F8_E4M3", 1) } else { ("BF16", 2) };
        add(name, dtype, shape, width);
    }
    for (name, shape) in &scales {
        add(name, "F32", shape, 4);
    }
    std::fs::write(directory.join("model.safetensors"), safetensors_bytes(&Json::Object(table), end))
        .unwrap();
    check(directory)
}

#[test]
fn fp8_checkpoints_are_served_with_their_scales() {
    let scheme = |strategy: &str, dynamic: bool| json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": strategy, "dynamic": dynamic});
    let compressed = |weights: &Json, inputs: &Json| {
        let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": inputs});
        json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]})
    };
    for (quantization, expected) in [
        (json!({"quant_method": "fp8", "activation_scheme": "static"}), Some(Fp8Activations::Static)),
        (json!({"quant_method": "fp8", "activation_scheme": "dynamic"}), Some(Fp8Activations::Dynamic)),
        (json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), None),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), None),
        (json!({"quant_method": "modelopt", "quant_algo": "FP8"}), Some(Fp8Activations::Static)),
        (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), None),
        (compressed(&scheme("tensor", false), &scheme("tensor", false)), Some(Fp8Activations::Static)),
        (compressed(&scheme("channel", false), &scheme("token", true)), Some(Fp8Activations::Dynamic)),
        (compressed(&scheme("channel", false), &Json::Null), None),
        (compressed(&scheme("block", false), &scheme("token", true)), None),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let summary = fp8_directory(directory.path(), &quantization, |_| {});
        let found = summary.map(|summary| summary.config.fp8_activations.unwrap());
        assert_eq!(found.ok(), expected, "{quantization}");
    }
}

#[test]
fn scales_that_are_missing_or_of_another_form_are_named() {
    let quantization = json!({"quant_method": "fp8", "activation_scheme": "static"});
    let directory = tempfile::tempdir().unwrap();
    let failure = |change: &dyn Fn(&mut Scales)| {
        let error = fp8_directory(directory.path(), &quantization, change).unwrap_err();
        error.to_string().replace(&format!("{}/", directory.path().display()), "")
    };
    let (scale, input) =
        ("model.layers.0.mlp.up_proj.weight_scale", "model.layers.0.mlp.up_proj.input_scale");
    assert_eq!(
        failure(&|scales| scales.retain(|(name, _)| name != scale)),
        "model.safetensors: tensor `model.layers.0.mlp.up_proj.weight_scale`: expected one of shape [12], found none. \
         `model.layers.0.mlp.up_proj.weight` is in FP8, which means nothing without. The file is damaged: download it \
         again."
    );
    assert!(failure(&|scales| scales.retain(|(name, _)| name != input)).contains(input));
    assert_eq!(
        failure(&|scales| scales
            .iter_mut()
            .filter(|(name, _)| name == scale)
            .for_each(|(_, shape)| *shape = vec![2, 2])),
        "model.safetensors: tensor `model.layers.0.mlp.up_proj.weight_scale`: expected shape [12], found [2, 2]. \
         Weights in blocks with a scale each are not supported."
    );
}
