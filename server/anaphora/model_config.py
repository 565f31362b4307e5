"""What a model is, in one form, whether it comes as Hugging Face files or as GGUF.

    config.json      (in a directory, or the file itself)    -> ModelConfig
    GGUF metadata    ("llama.block_count" and so on)         -> ModelConfig

What all architectures have is read by one function per format, and what one of them has besides by a function of its
own: see the tables HF_ARCHITECTURES and GGUF_ARCHITECTURES. A key that a model of ours cannot honour is refused here
rather than ignored: wrong text is worse than none.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from anaphora_kernels.gate_mul import Activation

from anaphora.errors import ModelFileError, UnsupportedModelError
from anaphora.fp8_checkpoint import Fp8Activations, read_activations
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
    local_rope_theta: float | None = None  # of layers with a window, unscaled; None: the same as of the others
    windows: tuple[int | None, ...] = ()  # by layer: positions that a token sees, itself included; None: all before it
    attention_scale: float = 0.0  # of query-key products
    attention_soft_cap: float | None = None  # s -> cap * tanh(s / cap) for scaled query-key products
    logit_soft_cap: float | None = None  # the same for logits
    qk_norm: bool = False  # every query and key head is normalised before it is rotated
    norm_offset: float = 0.0  # added to the weights of norms, compared with a Hugging Face checkpoint
    activation: Activation = "silu"  # of the MLP's gate
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    fp8_activations: Fp8Activations | None = None  # of a checkpoint in FP8; None: it is not


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

    def section(self, key: str) -> Mapping[str, Any]:
        """An object's values; none if it is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise ModelFileError(f"{self.source}: {key} is {value!r}, expected an object")
        return value or {}

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
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise ModelFileError(f'{source}: "architectures" must name one architecture, found {architectures!r}')
    architecture = str(architectures[0])
    if architecture not in HF_ARCHITECTURES:
        supported = ", ".join(HF_ARCHITECTURES)
        raise UnsupportedModelError(f"{source}: architecture {architecture} is not supported; these are: {supported}")
    defaults, details = HF_ARCHITECTURES[architecture]
    values = _Values({**defaults, **raw}, source)
    values.refuse_unless("hidden_act", "silu")
    quantization = values.section("quantization_config")
    num_layers = values.get(int, "num_hidden_layers")
    num_heads = values.get(int, "num_attention_heads")
    hidden_size = values.get(int, "hidden_size")
    head_dim = values.get(int, "head_dim", default=hidden_size // num_heads)
    rope_theta, rope_scaling = _hf_rope(values, "full_attention", values.get(float, "rope_theta", default=10000.0))
    config = ModelConfig(
        architecture=architecture,
        vocab_size=values.get(int, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=values.get(int, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=values.get(int, "num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        norm_eps=values.get(float, "rms_norm_eps", default=1e-6),
        max_context=values.get(int, "max_position_embeddings"),
        dtype=parse_dtype(values.get(str, "dtype", "torch_dtype", default="float32")),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        windows=(None,) * num_layers,
        attention_scale=head_dim**-0.5,
        tie_word_embeddings=_flag(values, "tie_word_embeddings"),
        fp8_activations=read_activations(quantization, source) if quantization else None,
    )
    return details(values, config)


def _hf_llama(values: _Values, config: ModelConfig) -> ModelConfig:
    return replace(config, attention_bias=_flag(values, "attention_bias"), mlp_bias=_flag(values, "mlp_bias"))


def _hf_mistral(values: _Values, config: ModelConfig) -> ModelConfig:
    return replace(config, windows=(values.find(int, "sliding_window"),) * config.num_layers)


def _hf_qwen3(values: _Values, config: ModelConfig) -> ModelConfig:
    window = values.find(int, "sliding_window") if _flag(values, "use_sliding_window") else None
    first = values.get(int, "max_window_layers")
    return replace(
        config,
        qk_norm=True,
        attention_bias=_flag(values, "attention_bias"),
        windows=_hf_windows(values, window, [index >= first for index in range(config.num_layers)]),
    )


def _hf_gemma3(values: _Values, config: ModelConfig) -> ModelConfig:
    values.refuse_unless("hidden_activation", "gelu_pytorch_tanh")
    values.refuse_unless("use_bidirectional_attention", False)
    theta, scaling = _hf_rope(values, "sliding_attention", values.get(float, "rope_local_base_freq"))
    if scaling is not None:
        raise UnsupportedModelError(f"{values.source}: scaled rotary frequencies in sliding layers are not supported")
    period = values.get(int, "sliding_window_pattern")
    is_sliding = [(index + 1) % period != 0 for index in range(config.num_layers)]
    return replace(
        config,
        qk_norm=True,
        norm_offset=1.0,
        activation="gelu",
        attention_bias=_flag(values, "attention_bias"),
        windows=_hf_windows(values, values.get(int, "sliding_window"), is_sliding),
        local_rope_theta=theta,
        attention_scale=values.get(float, "query_pre_attn_scalar") ** -0.5,
        attention_soft_cap=values.find(float, "attn_logit_softcapping"),
        logit_soft_cap=values.find(float, "final_logit_softcapping"),
    )


# "architectures" -> what transformers' configuration class assumes where a file is silent, and our reader
HF_ARCHITECTURES: Mapping[str, tuple[Mapping[str, Any], Callable[[_Values, ModelConfig], ModelConfig]]] = {
    "LlamaForCausalLM": ({}, _hf_llama),
    "MistralForCausalLM": ({"num_key_value_heads": 8, "sliding_window": 4096}, _hf_mistral),
    "Qwen3ForCausalLM": (
        {"head_dim": 128, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
        _hf_qwen3,
    ),
    "Gemma3ForCausalLM": (
        {
            "head_dim": 256,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
        _hf_gemma3,
    ),
}


def _flag(values: _Values, key: str) -> bool:
    return values.find(bool, key) or False


def _hf_windows(values: _Values, window: int | None, is_sliding: list[bool]) -> tuple[int | None, ...]:
    """By layer, as `layer_types` says; `is_sliding` where it does not."""
    types = values.values.get("layer_types")
    if types is None:
        types = ["sliding_attention" if sliding else "full_attention" for sliding in is_sliding]
    known = {"sliding_attention": window, "full_attention": None}
    if not isinstance(types, list) or len(types) != len(is_sliding):
        raise ModelFileError(f"{values.source}: layer_types must be a list of {len(is_sliding)} names")
    for kind in types:
        if kind not in known:
            raise UnsupportedModelError(
                f"{values.source}: a layer of type {kind!r} is not supported, only {' and '.join(known)}"
            )
    return tuple(known[kind] for kind in types)


def _hf_rope(values: _Values, layer_type: str, theta: float) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the layers of one type; `theta` where `rope_parameters` names no base.

    transformers 5 writes `rope_parameters`: one object, or one per layer type. Older files have `rope_scaling`, which
    is of the layers with full attention, and keep the bases beside it.
    """
    parameters = values.section("rope_parameters")
    if not parameters and layer_type == "full_attention":
        parameters = values.section("rope_scaling")
    rope = _Values(parameters, f"{values.source} (rope)")
    if "full_attention" in parameters or "sliding_attention" in parameters:
        rope = _Values(rope.section(layer_type), rope.source)
    return rope.get(float, "rope_theta", default=theta), _hf_rope_scaling(rope)


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


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """From a file's metadata and tensor table."""
    source = str(file.path)
    name = _Values(file.metadata, source).get(str, "general.architecture")
    if name not in GGUF_ARCHITECTURES:
        supported = ", ".join(GGUF_ARCHITECTURES)
        raise UnsupportedModelError(f"{source}: architecture {name!r} is not supported; these are: {supported}")
    architecture, details = GGUF_ARCHITECTURES[name]
    if file.metadata.get("split.count", 1) > 1:
        raise UnsupportedModelError(f"{source} is one of several parts; join them with `llama-gguf-split --merge`")
    own = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    values = _Values(own, f"{source} ({name})")
    if values.find(int, "expert_count"):
        raise UnsupportedModelError(f"{source}: mixtures of experts are not supported")
    num_layers = values.get(int, "block_count")
    num_heads = values.get(int, "attention.head_count")
    hidden_size = values.get(int, "embedding_length")
    head_dim = values.get(int, "attention.key_length", default=hidden_size // num_heads)
    values.refuse_unless("rope.dimension_count", head_dim)
    embedding = file.tensors.get("token_embd.weight")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=embedding.shape[0] if embedding else values.get(int, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=values.get(int, "feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=values.get(int, "attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        norm_eps=values.get(float, "attention.layer_norm_rms_epsilon"),
        max_context=values.get(int, "context_length"),
        dtype=torch.bfloat16,  # a quantised file names none; this is what such models are trained in
        rope_theta=values.get(float, "rope.freq_base", default=10000.0),
        rope_scaling=_gguf_rope_scaling(file, values),
        windows=(None,) * num_layers,
        attention_scale=head_dim**-0.5,
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
    )
    return details(values, config)


def _gguf_llama(_: _Values, config: ModelConfig) -> ModelConfig:
    return config


def _gguf_qwen3(_: _Values, config: ModelConfig) -> ModelConfig:
    return replace(config, qk_norm=True)


def _gguf_gemma3(values: _Values, config: ModelConfig) -> ModelConfig:
    """What the file does not say is as in llama.cpp; query_pre_attn_scalar is the head's width but in the 27B model."""
    window = values.get(int, "attention.sliding_window")
    every = values.get(int, "attention.sliding_window_pattern", default=6)
    scalar = config.hidden_size // config.num_heads if config.num_layers == 62 else config.head_dim
    return replace(
        config,
        local_rope_theta=values.get(float, "rope.freq_base_swa", default=10000.0),
        windows=tuple(window if (index + 1) % every else None for index in range(config.num_layers)),
        attention_scale=scalar**-0.5,
        attention_soft_cap=values.find(float, "attn_logit_softcapping"),
        logit_soft_cap=values.find(float, "final_logit_softcapping"),
        qk_norm=True,
        norm_offset=1.0,
        activation="gelu",
    )


# "general.architecture" -> the same model's name in `config.json`, and its own reader
GGUF_ARCHITECTURES: Mapping[str, tuple[str, Callable[[_Values, ModelConfig], ModelConfig]]] = {
    "llama": ("LlamaForCausalLM", _gguf_llama),
    "qwen3": ("Qwen3ForCausalLM", _gguf_qwen3),
    "gemma3": ("Gemma3ForCausalLM", _gguf_gemma3),
}


def _gguf_rope_scaling(file: GgufFile, values: _Values) -> RopeScaling | None:
    """llama.cpp's converter writes Llama 3's rule as one factor per frequency, and a linear one as metadata."""
    if "rope_freqs.weight" in file.tensors:
        return FactorScaling(tuple(file.read("rope_freqs.weight").tolist()))
    kind = values.get(str, "rope.scaling.type", default="none")
    if kind == "none":
        return None
    if kind == "linear":
        return LinearScaling(values.get(float, "rope.scaling.factor"))
    raise UnsupportedModelError(f"{values.source}: rope scaling {kind!r} is not supported, only linear and factors")
