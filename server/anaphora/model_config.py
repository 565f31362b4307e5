"""What a model is, in one form, whether it comes as Hugging Face files or as GGUF.

    config.json      (in a directory, or the file itself)    -> ModelConfig
    GGUF metadata    ("llama.block_count" and so on)         -> ModelConfig

A key that a model of ours cannot honour is refused here rather than ignored: wrong text is worse than none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from anaphora.errors import ModelFileError, UnsupportedModelError
from anaphora.gguf_file import GgufFile
from anaphora.layers.rotary import FactorScaling, LinearScaling, Llama3Scaling, RopeScaling

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and switches of a decoder. Everything that is not the same for all ranks is not in here."""

    architecture: str  # a key of anaphora.models.MODELS
    vocab_size: int  # rows of embedding and head
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_context: int  # tokens
    dtype: torch.dtype  # that the weights were saved in
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None  # positions; models without one ignore it


def parse_dtype(name: str) -> torch.dtype:
    """One of "float32", "bfloat16", "float16". Raises UnsupportedModelError for others."""
    if name not in _DTYPES:
        raise UnsupportedModelError(f"dtype {name} is not supported; these are: {', '.join(_DTYPES)}")
    return _DTYPES[name]


class _Values:
    """Typed access to a dict of JSON values or of GGUF metadata, with errors that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def get(self, kind: type[T], *keys: str, default: T | None = None) -> T:
        """The first of `keys` that is there and not null, else the default; an error if there is none."""
        found = self.find(kind, *keys)
        if found is not None:
            return found
        if default is None:
            raise ModelFileError(f"{self.source} lacks {' or '.join(keys)}")
        return default

    def find(self, kind: type[T], *keys: str) -> T | None:
        """Like `get`, but None if nothing is there."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if kind is float and type(value) is int:
                return kind(value)
            if type(value) is not kind:
                raise ModelFileError(f"{self.source}: {key} is {value!r}, expected {kind.__name__}")
            return value
        return None

    def refuse_unless(self, key: str, supported: object) -> None:
        """An error if `key` is there with any other value."""
        value = self.values.get(key)
        if value is not None and value != supported:
            raise UnsupportedModelError(f"{self.source}: {key} = {value!r} is not supported, only {supported!r}")


# === Hugging Face ===


def read_hf_config(path: Path) -> ModelConfig:
    """From a directory with a config.json, or from such a file. Raises ModelFileError, naming file and key."""
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{file} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ModelFileError(f"{file} is not a JSON object")
    return parse_hf_config(raw, str(file))


def parse_hf_config(raw: Mapping[str, Any], source: str) -> ModelConfig:
    """From the contents of a config.json; `source` names it in errors."""
    values = _Values(raw, source)
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise ModelFileError(f'{source}: "architectures" must name one architecture, found {architectures!r}')
    values.refuse_unless("hidden_act", "silu")
    values.refuse_unless("quantization_config", None)
    num_heads = values.get(int, "num_attention_heads")
    hidden_size = values.get(int, "hidden_size")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ModelFileError(f"{source}: the rope parameters are {rope!r}, expected an object")
    rope_values = _Values(rope, f"{source} (rope)")
    return ModelConfig(
        architecture=str(architectures[0]),
        vocab_size=values.get(int, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=values.get(int, "intermediate_size"),
        num_layers=values.get(int, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=values.get(int, "num_key_value_heads", default=num_heads),
        head_dim=values.get(int, "head_dim", default=hidden_size // num_heads),
        norm_eps=values.get(float, "rms_norm_eps", default=1e-6),
        max_context=values.get(int, "max_position_embeddings"),
        dtype=parse_dtype(values.get(str, "dtype", "torch_dtype", default="float32")),
        rope_theta=rope_values.find(float, "rope_theta") or values.get(float, "rope_theta", default=10000.0),
        rope_scaling=_hf_rope_scaling(rope_values),
        tie_word_embeddings=_flag(values, "tie_word_embeddings"),
        attention_bias=_flag(values, "attention_bias"),
        mlp_bias=_flag(values, "mlp_bias"),
        sliding_window=values.find(int, "sliding_window"),
    )


def _flag(values: _Values, key: str) -> bool:
    return values.find(bool, key) or False


def _hf_rope_scaling(rope: _Values) -> RopeScaling | None:
    rope.refuse_unless("partial_rotary_factor", 1.0)
    kind = rope.find(str, "rope_type", "type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(rope.get(float, "factor"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=rope.get(float, "factor"),
            low_freq_factor=rope.get(float, "low_freq_factor"),
            high_freq_factor=rope.get(float, "high_freq_factor"),
            original_max_position_embeddings=rope.get(int, "original_max_position_embeddings"),
        )
    raise UnsupportedModelError(f"{rope.source}: scaling {kind!r} is not supported, only default, linear and llama3")


# === GGUF ===


def read_gguf_config(file: GgufFile, architectures: Mapping[str, str]) -> ModelConfig:
    """From a file's metadata and tensor table; `architectures` maps GGUF's names to ours."""
    source = str(file.path)
    general = _Values(file.metadata, source)
    name = general.get(str, "general.architecture")
    if name not in architectures:
        supported = ", ".join(architectures)
        raise UnsupportedModelError(f"{source}: architecture {name!r} is not supported; these are: {supported}")
    if general.get(int, "split.count", default=1) > 1:
        raise UnsupportedModelError(f"{source} is one of several parts; join them with `llama-gguf-split --merge`")
    if general.find(int, f"{name}.expert_count"):
        raise UnsupportedModelError(f"{source}: mixtures of experts are not supported")
    num_heads = general.get(int, f"{name}.attention.head_count")
    hidden_size = general.get(int, f"{name}.embedding_length")
    head_dim = general.get(int, f"{name}.attention.key_length", default=hidden_size // num_heads)
    general.refuse_unless(f"{name}.rope.dimension_count", head_dim)
    embedding = file.tensors.get("token_embd.weight")
    return ModelConfig(
        architecture=architectures[name],
        vocab_size=embedding.shape[0] if embedding else general.get(int, f"{name}.vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=general.get(int, f"{name}.feed_forward_length"),
        num_layers=general.get(int, f"{name}.block_count"),
        num_heads=num_heads,
        num_kv_heads=general.get(int, f"{name}.attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        norm_eps=general.get(float, f"{name}.attention.layer_norm_rms_epsilon"),
        max_context=general.get(int, f"{name}.context_length"),
        dtype=torch.bfloat16,  # a quantised file names none; this is what such models are trained in
        rope_theta=general.get(float, f"{name}.rope.freq_base", default=10000.0),
        rope_scaling=_gguf_rope_scaling(file, general, name),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        sliding_window=general.find(int, f"{name}.attention.sliding_window"),
    )


def _gguf_rope_scaling(file: GgufFile, values: _Values, name: str) -> RopeScaling | None:
    """llama.cpp's converter writes Llama 3's rule as one factor per frequency, and a linear one as metadata."""
    if "rope_freqs.weight" in file.tensors:
        return FactorScaling(tuple(file.read("rope_freqs.weight").tolist()))
    kind = values.get(str, f"{name}.rope.scaling.type", default="none")
    if kind == "none":
        return None
    if kind == "linear":
        return LinearScaling(values.get(float, f"{name}.rope.scaling.factor"))
    raise UnsupportedModelError(f"{values.source}: rope scaling {kind!r} is not supported, only linear and factors")
