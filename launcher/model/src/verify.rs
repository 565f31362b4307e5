//! Whether a model can be served, from the heads of its files: before anything is spawned, in milliseconds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::config::ModelConfig;
use crate::error::{DOWNLOAD_AGAIN, ModelError, thousands};
use crate::expected::{ExpectedTensor, Naming};
use crate::fp8;
use crate::gguf::{Gguf, weight_type_names};
use crate::safetensors::{Safetensors, weight_dtype_names};

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadFormat {
    /// From the model's files.
    #[default]
    Auto,
    /// Random numbers: only the configuration is read.
    Dummy,
}

/// What there is to know of a model whose files are in order.
#[derive(Debug, Clone)]
pub struct ModelSummary {
    /// `LlamaForCausalLM`
    pub architecture: String,
    /// Numbers in all weights; a tied embedding counts once.
    pub num_parameters: u64,
    /// Bytes of all weights as stored; 0 if none are read.
    pub bytes: u64,
    /// The longest text that the model was made for, in tokens.
    pub max_context: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads.
    pub num_key_value_heads: u32,
    /// The files that weights and configuration come from.
    pub files: Vec<PathBuf>,
    /// All sizes and switches.
    pub config: ModelConfig,
}

/// Checks a model: a GGUF file, or a directory with `config.json` and safetensors. With [`LoadFormat::Dummy`] a
/// `config.json` alone will do.
///
/// # Errors
/// The first thing that is wrong, as one paragraph.
pub fn verify(path: &Path, load_format: LoadFormat) -> Result<ModelSummary, ModelError> {
    if path.is_dir() {
        return verify_directory(path, load_format);
    }
    if !path.exists() {
        return Err(ModelError::Missing {
            file: path.to_owned(),
            expected: "a GGUF file, or a directory with config.json and safetensors".to_owned(),
            found: "there is nothing here".to_owned(),
            hint: "Check the path.".to_owned(),
        });
    }
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if is_json && load_format == LoadFormat::Dummy {
        return Ok(summary(
            ModelConfig::from_json_file(path)?,
            Naming::HuggingFace,
            vec![path.to_owned()],
            0,
        ));
    }
    let file = Gguf::read(path)?;
    let config = ModelConfig::from_gguf(&file)?;
    if load_format == LoadFormat::Dummy {
        return Ok(summary(config, Naming::Gguf, vec![path.to_owned()], 0));
    }
    check_gguf(&file, &config)?;
    let bytes = file.tensors.iter().map(|tensor| tensor.num_bytes).sum();
    Ok(summary(config, Naming::Gguf, vec![path.to_owned()], bytes))
}

fn verify_directory(path: &Path, load_format: LoadFormat) -> Result<ModelSummary, ModelError> {
    let config_file = path.join("config.json");
    if !config_file.is_file() {
        return Err(missing_config(path));
    }
    let config = ModelConfig::from_json_file(&config_file)?;
    if load_format == LoadFormat::Dummy {
        return Ok(summary(config, Naming::HuggingFace, vec![config_file], 0));
    }
    let heads =
        weight_files(path)?.iter().map(|file| Safetensors::read(file)).collect::<Result<Vec<_>, _>>()?;
    check_safetensors(path, &heads, &config)?;
    let bytes = heads.iter().flat_map(|head| &head.tensors).map(|tensor| tensor.num_bytes).sum();
    let files = std::iter::once(config_file).chain(heads.into_iter().map(|head| head.path)).collect();
    Ok(summary(config, Naming::HuggingFace, files, bytes))
}

fn summary(config: ModelConfig, naming: Naming, files: Vec<PathBuf>, bytes: u64) -> ModelSummary {
    let elements =
        |tensor: &ExpectedTensor| tensor.shape.iter().fold(1u64, |all, &size| all.saturating_mul(size));
    let tensors = config.expected_tensors(naming);
    ModelSummary {
        architecture: config.architecture.name().to_owned(),
        num_parameters: tensors.iter().map(elements).fold(0, u64::saturating_add),
        bytes,
        max_context: config.max_context,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        files,
        config,
    }
}

// === which files ===

fn missing_config(path: &Path) -> ModelError {
    let names = file_names(path);
    let gguf = names.iter().find(|name| name.ends_with(".gguf"));
    let hint = match gguf {
        Some(name) => format!("To serve the GGUF file in it, give its path: {}.", path.join(name).display()),
        None if names.contains("adapter_config.json") => {
            "This is an adapter: merge it into its base model first.".to_owned()
        }
        None => "Check the path, or download the model again.".to_owned(),
    };
    ModelError::Missing {
        file: path.join("config.json"),
        expected: "the model's configuration".to_owned(),
        found: "there is no such file".to_owned(),
        hint,
    }
}

/// The safetensors files of a directory: those that the index names, else `model.safetensors`, else all.
fn weight_files(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = path.join("model.safetensors.index.json");
    if index.is_file() {
        return indexed_files(path, &index);
    }
    let names = file_names(path);
    if names.contains("model.safetensors") {
        return Ok(vec![path.join("model.safetensors")]);
    }
    let files = names.iter().filter(|name| name.ends_with(".safetensors"));
    let files = files.map(|name| path.join(name)).collect::<Vec<_>>();
    if !files.is_empty() {
        return Ok(files);
    }
    let pickled =
        names.iter().find(|name| [".bin", ".pt", ".pth"].iter().any(|suffix| name.ends_with(suffix)));
    let (found, hint) = match pickled {
        Some(name) => (
            format!("only `{name}`, which is a pickle"),
            "Pickles run code when they are read and are never loaded. Convert the model to safetensors: \
             `transformers`' save_pretrained writes them.",
        ),
        None => ("there is none".to_owned(), "Download the model again, or give --load-format dummy."),
    };
    Err(ModelError::Missing {
        file: path.to_owned(),
        expected: "weights in *.safetensors files".to_owned(),
        found,
        hint: hint.to_owned(),
    })
}

/// The files that an index names, each of which must be there.
fn indexed_files(path: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let corrupt = |item: &str, expected: &str, found: String| ModelError::Corrupt {
        file: index.to_owned(),
        item: item.to_owned(),
        expected: expected.to_owned(),
        found,
        hint: DOWNLOAD_AGAIN,
    };
    let text = std::fs::read(index).map_err(|source| ModelError::Io { file: index.to_owned(), source })?;
    let Index { weight_map } = serde_json::from_slice(&text)
        .map_err(|error| corrupt("the whole file", "JSON with a `weight_map` of names", error.to_string()))?;
    let names = weight_map.values().collect::<BTreeSet<_>>();
    if names.is_empty() {
        return Err(corrupt("`weight_map`", "at least one tensor", "none".to_owned()));
    }
    let mut files = Vec::new();
    for name in names {
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(corrupt("`weight_map`", "names of files in the same directory", format!("`{name}`")));
        }
        let file = path.join(name);
        if !file.is_file() {
            return Err(ModelError::Missing {
                file,
                expected: format!("a file that {} names", index.display()),
                found: "there is no such file".to_owned(),
                hint: "Download the model again.".to_owned(),
            });
        }
        files.push(file);
    }
    Ok(files)
}

/// Names of the files in a directory, sorted; none if it cannot be read.
fn file_names(path: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

// === what is in them ===

/// One tensor, in whichever file.
pub(crate) struct Found<'a> {
    pub(crate) file: &'a Path,
    pub(crate) shape: &'a [u64],
    pub(crate) type_name: &'a str,
    pub(crate) is_weight: bool,
}

fn check_gguf(file: &Gguf, config: &ModelConfig) -> Result<(), ModelError> {
    let found = file.tensors.iter().map(|tensor| {
        let (ggml_type, shape) = (tensor.ggml_type, tensor.shape.as_slice());
        let is_weight = ggml_type.is_weight();
        (tensor.name.as_str(), Found { file: &file.path, shape, type_name: ggml_type.name, is_weight })
    });
    check_tensors(&file.path, config, Naming::Gguf, &found.collect(), &weight_type_names())
}

fn check_safetensors(path: &Path, heads: &[Safetensors], config: &ModelConfig) -> Result<(), ModelError> {
    let mut found = HashMap::new();
    for head in heads {
        for tensor in &head.tensors {
            let (shape, is_weight) = (tensor.shape.as_slice(), tensor.is_weight());
            let entry = Found { file: &head.path, shape, type_name: &tensor.dtype, is_weight };
            if let Some(other) = found.insert(tensor.name.as_str(), entry) {
                return Err(ModelError::Corrupt {
                    file: head.path.clone(),
                    item: format!("tensor `{}`", tensor.name),
                    expected: "each name in one file".to_owned(),
                    found: format!("it in {} too", other.file.display()),
                    hint: "Remove the files that do not belong to the model.",
                });
            }
        }
    }
    fp8::fold_scales(&mut found, config)?;
    let place = if let [head] = heads { &head.path } else { path };
    check_tensors(place, config, Naming::HuggingFace, &found, &weight_dtype_names())
}

fn check_tensors(
    place: &Path,
    config: &ModelConfig,
    naming: Naming,
    found: &HashMap<&str, Found<'_>>,
    supported: &str,
) -> Result<(), ModelError> {
    let expected = config.expected_tensors(naming);
    let missing = expected.iter().filter(|tensor| !found.contains_key(tensor.name.as_str())).count();
    for tensor in &expected {
        match found.get(tensor.name.as_str()) {
            Some(there) => check_tensor(tensor, there, supported)?,
            None => {
                return Err(ModelError::MissingTensor {
                    file: place.to_owned(),
                    tensor: tensor.name.clone(),
                    shape: tensor.shape.clone(),
                    hint: missing_hint(missing, expected.len()),
                });
            }
        }
    }
    let names = expected.iter().map(|tensor| tensor.name.as_str()).collect::<BTreeSet<_>>();
    let mut unexpected = found
        .iter()
        .filter(|(name, _)| !names.contains(*name) && !config.ignores_tensor(name))
        .collect::<Vec<_>>();
    unexpected.sort_by_key(|(name, _)| **name);
    match unexpected.first() {
        Some((name, there)) => Err(ModelError::Unsupported {
            file: there.file.to_owned(),
            item: format!("a {} with tensor", config.architecture.name()),
            found: format!("`{name}`"),
            supported: format!(
                "the {} tensors that its configuration asks for",
                thousands(expected.len() as u64)
            ),
            hint: "The model is of another architecture, or the files do not belong together.",
        }),
        None => Ok(()),
    }
}

fn missing_hint(missing: usize, expected: usize) -> String {
    if missing == expected {
        return "None of the expected tensors is there: these are files of another model.".to_owned();
    }
    let (missing, expected) = (thousands(missing as u64), thousands(expected as u64));
    format!("{missing} of {expected} tensors are missing: download the model again.")
}

fn check_tensor(expected: &ExpectedTensor, found: &Found<'_>, supported: &str) -> Result<(), ModelError> {
    if found.shape != expected.shape {
        return Err(ModelError::TensorShape {
            file: found.file.to_owned(),
            tensor: expected.name.clone(),
            expected: expected.shape.clone(),
            found: found.shape.to_vec(),
            hint: "The configuration and the weights are not of the same model.",
        });
    }
    if !found.is_weight {
        return Err(ModelError::Unsupported {
            file: found.file.to_owned(),
            item: format!("tensor `{}`: type", expected.name),
            found: found.type_name.to_owned(),
            supported: supported.to_owned(),
            hint: "Convert the model to one of these types.",
        });
    }
    Ok(())
}
