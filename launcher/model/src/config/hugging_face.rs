//! `config.json`, as `transformers` writes it: version 5 puts the rotary settings under `rope_parameters`, older ones
//! write `rope_theta` beside the others and the rest under `rope_scaling`.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{Architecture, ModelConfig, RopeScaling, Source};
use crate::error::ModelError;
use crate::fp8;

const FULL_ATTENTION: &str = "full_attention";
const SLIDING_ATTENTION: &str = "sliding_attention";
const LAYER_TYPES: [&str; 2] = [FULL_ATTENTION, SLIDING_ATTENTION];

pub(super) fn read(file: &Path) -> Result<ModelConfig, ModelError> {
    let text =
        std::fs::read_to_string(file).map_err(|source| ModelError::Io { file: file.to_owned(), source })?;
    let source = Source { file };
    let whole = |found: String| source.invalid("the whole file", "a JSON object", found);
    let json = serde_json::from_str(&text).map_err(|error| whole(error.to_string()))?;
    let Json::Object(mut fields) = json else { return Err(whole("something else".to_owned())) };
    let architecture = architecture(&Fields { fields: &fields, source: &source, prefix: "" })?;
    for (key, value) in defaults(architecture) {
        fields.entry(key.to_owned()).or_insert(value);
    }
    let config = parse(architecture, &Fields { fields: &fields, source: &source, prefix: "" })?;
    source.check(&config)?;
    Ok(config)
}

/// What `transformers`' configuration class assumes where a file is silent.
fn defaults(architecture: Architecture) -> Vec<(&'static str, Json)> {
    match architecture {
        Architecture::Llama => Vec::new(),
        Architecture::Mistral => vec![("num_key_value_heads", 8.into()), ("sliding_window", 4096.into())],
        Architecture::Qwen3 => vec![
            ("head_dim", 128.into()),
            ("num_key_value_heads", 32.into()),
            ("sliding_window", 4096.into()),
        ],
        Architecture::Gemma3 => vec![
            ("head_dim", 256.into()),
            ("num_key_value_heads", 4.into()),
            ("query_pre_attn_scalar", 256.into()),
            ("rope_theta", 1e6.into()),
            ("sliding_window", 4096.into()),
            ("sliding_window_pattern", 6.into()),
            ("tie_word_embeddings", true.into()),
        ],
    }
}

fn parse(architecture: Architecture, fields: &Fields<'_>) -> Result<ModelConfig, ModelError> {
    fields.refuse_unless("hidden_act", "silu")?;
    let fp8_activations = match fields.get("quantization_config") {
        Some(quantization) => Some(fp8::activations(quantization).ok_or_else(|| {
            let method = quantization["quant_method"].as_str().unwrap_or("an unnamed method");
            let hint = "Use the original weights, or a GGUF file.";
            let item = "quantization_config: this form of";
            fields.source.unsupported(item, method, fp8::SUPPORTED, hint)
        })?),
        None => None,
    };
    let hidden_size = fields.size("hidden_size")?;
    let num_attention_heads = fields.size("num_attention_heads")?;
    let empty = Map::new();
    let rope = rope_of(FULL_ATTENTION, fields, &empty)?;
    if architecture == Architecture::Gemma3 {
        check_gemma3(fields, rope_scaling(&rope_of(SLIDING_ATTENTION, fields, &empty)?)?)?;
    }
    check_layer_types(fields)?;
    // The other architectures' own configurations know no such biases; keys that say so would not be read by anyone.
    let has_attention_bias = architecture != Architecture::Mistral;
    let has_mlp_bias = architecture == Architecture::Llama;
    let has_window = architecture != Architecture::Qwen3 || fields.flag("use_sliding_window")?;
    Ok(ModelConfig {
        architecture,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        num_layers: fields.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads),
        head_dim: fields.optional_size("head_dim")?.unwrap_or(hidden_size / num_attention_heads),
        norm_eps: fields.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
        max_context: fields.size("max_position_embeddings")?,
        rope_theta: match rope.optional_number("rope_theta")? {
            Some(theta) => theta,
            None => fields.optional_number("rope_theta")?.unwrap_or(10_000.0),
        },
        rope_scaling: rope_scaling(&rope)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        attention_bias: has_attention_bias && fields.flag("attention_bias")?,
        mlp_bias: has_mlp_bias && fields.flag("mlp_bias")?,
        sliding_window: fields.optional_size("sliding_window")?.filter(|_| has_window),
        dtype: dtype(fields)?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        fp8_activations,
    })
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let key = "architectures";
    let names = fields.get(key).and_then(Json::as_array).map(Vec::as_slice);
    let Some([Json::String(name)]) = names else {
        let found = fields.get(key).map_or("nothing".to_owned(), Json::to_string);
        return Err(fields.source.invalid(key, "a list of one name", found));
    };
    Architecture::from_name(name).ok_or_else(|| fields.source.unknown_architecture(name, false))
}

/// The rotary settings of the layers of one type: an object, or one per type, in `rope_parameters`; in older files
/// `rope_scaling`, which is of the layers with full attention.
fn rope_of<'a>(
    layer_type: &str,
    fields: &Fields<'a>,
    empty: &'a Map<String, Json>,
) -> Result<Fields<'a>, ModelError> {
    let object = |value: Option<&'a Json>| match value.filter(|value| !value.is_null()) {
        None => Ok(empty),
        Some(Json::Object(object)) => Ok(object),
        Some(other) => Err(fields.source.invalid("rope_parameters", "an object", other.to_string())),
    };
    let mut rope = object(fields.fields.get("rope_parameters"))?;
    if rope.is_empty() && layer_type == FULL_ATTENTION {
        rope = object(fields.fields.get("rope_scaling"))?;
    }
    if LAYER_TYPES.iter().any(|&kind| rope.contains_key(kind)) {
        rope = object(rope.get(layer_type))?;
    }
    Ok(Fields { fields: rope, source: fields.source, prefix: "rope_parameters." })
}

/// What the shard reads besides, and honours in one form only.
fn check_gemma3(fields: &Fields<'_>, local_scaling: Option<RopeScaling>) -> Result<(), ModelError> {
    let hint = "Choose another model.";
    fields.refuse_unless("hidden_activation", "gelu_pytorch_tanh")?;
    if fields.flag("use_bidirectional_attention")? {
        return Err(fields.source.unsupported("use_bidirectional_attention", "true", "false", hint));
    }
    if local_scaling.is_some() {
        let supported = "rope_type default";
        return Err(fields.source.unsupported("rotary scaling in", "sliding_attention", supported, hint));
    }
    fields.number("query_pre_attn_scalar")?;
    fields.optional_number("attn_logit_softcapping")?;
    fields.optional_number("final_logit_softcapping")?;
    fields.size("sliding_window_pattern")?;
    fields.size("sliding_window").map(drop)
}

/// That every layer is of a type that the shard knows.
fn check_layer_types(fields: &Fields<'_>) -> Result<(), ModelError> {
    let Some(types) = fields.get("layer_types") else { return Ok(()) };
    let num_layers = fields.size("num_hidden_layers")? as usize;
    let types = types.as_array().filter(|types| types.len() == num_layers);
    let types =
        types.ok_or_else(|| fields.invalid("layer_types", &format!("a list of {num_layers} names")))?;
    match types.iter().find(|kind| !LAYER_TYPES.iter().any(|known| kind.as_str() == Some(*known))) {
        Some(unknown) => {
            let hint = "Choose another model.";
            Err(fields.source.unsupported(
                "a layer of type",
                unknown.to_string(),
                LAYER_TYPES.join(", "),
                hint,
            ))
        }
        None => Ok(()),
    }
}

/// `dtype`, or `torch_dtype` as older configurations call it.
fn dtype(fields: &Fields<'_>) -> Result<Option<String>, ModelError> {
    match fields.text("dtype")?.or(fields.text("torch_dtype")?) {
        name @ (None | Some("float32" | "bfloat16" | "float16")) => Ok(name.map(str::to_owned)),
        Some(other) => Err(fields.source.unsupported(
            "dtype",
            other,
            "float32, bfloat16, float16",
            "Choose another model.",
        )),
    }
}

fn rope_scaling(rope: &Fields<'_>) -> Result<Option<RopeScaling>, ModelError> {
    if rope.optional_number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        let found = rope.get("partial_rotary_factor").map_or(String::new(), Json::to_string);
        return Err(rope.source.unsupported("partial_rotary_factor", found, "1.0", "Choose another model."));
    }
    match rope.text("rope_type")?.or(rope.text("type")?).unwrap_or("default") {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: rope.number("factor")? })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: rope.number("factor")?,
            low_freq_factor: rope.number("low_freq_factor")?,
            high_freq_factor: rope.number("high_freq_factor")?,
            original_max_position_embeddings: rope.size("original_max_position_embeddings")?,
        })),
        other => Err(rope.source.unsupported(
            "rope scaling",
            other,
            "default, linear, llama3",
            "Choose another model.",
        )),
    }
}

/// Typed access to a JSON object. A null is as good as an absent key.
struct Fields<'a> {
    fields: &'a Map<String, Json>,
    source: &'a Source<'a>,
    /// Where the object is in the file, for messages.
    prefix: &'static str,
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Json> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn invalid(&self, key: &str, expected: &str) -> ModelError {
        let found = self.get(key).map_or("nothing".to_owned(), Json::to_string);
        self.source.invalid(&format!("{}{key}", self.prefix), expected, found)
    }

    fn size(&self, key: &str) -> Result<u32, ModelError> {
        self.optional_size(key)?.ok_or_else(|| self.invalid(key, "a whole number"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.source.size(&format!("{}{key}", self.prefix), value.as_u64(), &value.to_string()).map(Some)
    }

    fn number(&self, key: &str) -> Result<f64, ModelError> {
        self.optional_number(key)?.ok_or_else(|| self.invalid(key, "a number"))
    }

    /// All numbers that are asked for are scales: positive.
    fn optional_number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| *number > 0.0 && number.is_finite());
        number.map(Some).ok_or_else(|| self.invalid(key, "a positive number"))
    }

    fn flag(&self, key: &str) -> Result<bool, ModelError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.invalid(key, "true or false"))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.invalid(key, "a string"))
    }

    fn token_ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let one = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Json::Array(values)) => values.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.invalid(key, "a token id or a list of them"))
    }

    fn refuse_unless(&self, key: &str, supported: &str) -> Result<(), ModelError> {
        match self.text(key)? {
            Some(found) if found != supported => {
                Err(self.source.unsupported(key, found, supported, "Choose another model."))
            }
            _ => Ok(()),
        }
    }
}
