//! Checkpoints in FP8 (e4m3): how `quantization_config` describes them, and the scales that come with their tensors.
//!
//! ```text
//! X.weight         F8_E4M3 [out, in]
//! X.weight_scale   one number, or one per output
//! X.input_scale    one number, where activations are static
//! ….self_attn.k_scale, v_scale    one number, or one per KV head: of an FP8 KV cache
//! ```
//! The shard reads the same (`server/anaphora/fp8_checkpoint.py`).

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::config::ModelConfig;
use crate::error::{DOWNLOAD_AGAIN, ModelError};
use crate::verify::Found;

/// How activations become FP8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fp8Activations {
    /// By a scale of the checkpoint, one per product.
    Static,
    /// Each token by its largest value.
    Dynamic,
}

/// What of `quantization_config` can be served, for messages.
pub(crate) const SUPPORTED: &str = "FP8 (e4m3) weights with a scale per tensor or per channel and activations in FP8, \
                                    by fp8, compressed-tensors or modelopt";

/// As safetensors calls the type.
const FP8: &str = "F8_E4M3";
const KV_SCALES: &[&str] = &[
    "self_attn.k_scale",
    "self_attn.v_scale",
    "self_attn.k_proj.k_scale",
    "self_attn.v_proj.v_scale",
    "self_attn.k_proj.output_scale",
    "self_attn.v_proj.output_scale",
];
/// Of attention that is itself computed in FP8, as ours is not.
const UNUSED_SCALES: &[&str] = &["self_attn.q_scale", "self_attn.prob_scale"];

/// The activations of a `quantization_config`; none if it is anything but FP8 in a form that is served.
pub(crate) fn activations(config: &Json) -> Option<Fp8Activations> {
    match config["quant_method"].as_str()? {
        "fp8" => {
            let is_e4m3 = matches!(config["fmt"].as_str(), None | Some("e4m3" | "float8_e4m3fn"));
            if !config["weight_block_size"].is_null() || !is_e4m3 {
                return None;
            }
            match config["activation_scheme"].as_str() {
                Some("static") => Some(Fp8Activations::Static),
                None | Some("dynamic") => Some(Fp8Activations::Dynamic),
                Some(_) => None,
            }
        }
        "compressed-tensors" => compressed_tensors(config),
        "modelopt" => match config["quant_algo"].as_str()? {
            "FP8" => Some(Fp8Activations::Static),
            "FP8_PER_CHANNEL_PER_TOKEN" => Some(Fp8Activations::Dynamic),
            _ => None,
        },
        _ => None,
    }
}

fn compressed_tensors(config: &Json) -> Option<Fp8Activations> {
    let groups = config["config_groups"].as_object()?;
    let sparsity = &config["sparsity_config"];
    let is_sparse = !sparsity.is_null() && sparsity.as_object().is_none_or(|fields| !fields.is_empty());
    let mut groups = groups.values();
    let (Some(group), None, false) = (groups.next(), groups.next(), is_sparse) else { return None };
    let (weights, inputs) = (&group["weights"], &group["input_activations"]);
    let is_fp8 = |scheme: &Json| {
        scheme["num_bits"] == 8 && scheme["type"] == "float" && scheme["symmetric"].as_bool().unwrap_or(true)
    };
    let has = |scheme: &Json, strategies: [&str; 2]| {
        scheme["strategy"].as_str().is_some_and(|name| strategies.contains(&name))
    };
    let is_served = is_fp8(weights)
        && is_fp8(inputs)
        && has(weights, ["tensor", "channel"])
        && has(inputs, ["tensor", "token"]);
    match (is_served, inputs["dynamic"].as_bool()?) {
        (false, _) => None,
        (true, false) => Some(Fp8Activations::Static),
        (true, true) => Some(Fp8Activations::Dynamic),
    }
}

/// Takes scales out of the table, so that what is left is what any checkpoint of the model has.
///
/// # Errors
/// If a scale is missing, or has not as many numbers as it should.
pub(crate) fn fold_scales(
    found: &mut HashMap<&str, Found<'_>>,
    config: &ModelConfig,
) -> Result<(), ModelError> {
    found.retain(|name, _| !UNUSED_SCALES.iter().any(|scale| name.ends_with(scale)));
    let kv_heads = u64::from(config.num_key_value_heads);
    let mut scales = Vec::new();
    for (&name, there) in &*found {
        if KV_SCALES.iter().any(|scale| name.ends_with(scale)) {
            check_scale(name, there, kv_heads)?;
            scales.push(name.to_owned());
        }
    }
    if let Some(activations) = config.fp8_activations {
        let mut weights = found
            .iter()
            .filter(|(name, there)| there.type_name == FP8 && name.ends_with(".weight"))
            .map(|(name, there)| (*name, there.shape.first().copied().unwrap_or_default()))
            .collect::<Vec<_>>();
        weights.sort_unstable();
        for (name, outputs) in weights {
            let input_scale = name.replace(".weight", ".input_scale");
            let is_static = activations == Fp8Activations::Static;
            for (scale, count, is_needed) in
                [(format!("{name}_scale"), outputs, true), (input_scale, 1, is_static)]
            {
                match found.get(scale.as_str()) {
                    Some(there) => check_scale(&scale, there, count)?,
                    None if is_needed => return Err(missing(name, &scale, count, found)),
                    None => {}
                }
                scales.push(scale);
            }
            if let Some(weight) = found.get_mut(name) {
                weight.is_weight = true;
            }
        }
    }
    found.retain(|name, _| !scales.iter().any(|scale| scale == name));
    Ok(())
}

fn check_scale(name: &str, found: &Found<'_>, count: u64) -> Result<(), ModelError> {
    let numbers = found.shape.iter().product::<u64>();
    if numbers == 1 || numbers == count {
        return Ok(());
    }
    Err(ModelError::TensorShape {
        file: found.file.to_owned(),
        tensor: name.to_owned(),
        expected: vec![count],
        found: found.shape.to_vec(),
        hint: "Weights in blocks with a scale each are not supported.",
    })
}

fn missing(weight: &str, scale: &str, count: u64, found: &HashMap<&str, Found<'_>>) -> ModelError {
    let file = found.get(weight).map(|there| there.file.to_owned()).unwrap_or_default();
    let hint = format!("`{weight}` is in FP8, which means nothing without. {DOWNLOAD_AGAIN}");
    ModelError::MissingTensor { file, tensor: scale.to_owned(), shape: vec![count], hint }
}
