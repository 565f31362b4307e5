"""FP8 (e4m3) checkpoints: how `quantization_config` describes them, and what their tensors are called.

    X.weight         F8_E4M3 [out, in]
    X.weight_scale   one number, or one per output: [out] or [out, 1]
    X.input_scale    one number, where activations are static
    ….self_attn.k_scale, v_scale    one number, or one per KV head: of an FP8 KV cache (older names: KV_SCALES)

Which products are in FP8 is what the types of the tensors say. Three tools write such files: AutoFP8 and transformers
("fp8"), llm-compressor ("compressed-tensors", https://github.com/vllm-project/compressed-tensors) and TensorRT's model
optimizer ("modelopt").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from anaphora_kernels.linear_fp8 import Fp8Rows
from torch import Tensor

from anaphora.errors import UnsupportedModelError

# How activations become FP8: by a number of the checkpoint, or each token by its largest value.
Fp8Activations = Literal["static", "dynamic"]
FP8: Final = "F8_E4M3"  # as safetensors calls it
KV_SCALES: Final[Mapping[str, str]] = {
    "self_attn.k_proj.k_scale": "self_attn.k_scale",
    "self_attn.v_proj.v_scale": "self_attn.v_scale",
    "self_attn.k_proj.output_scale": "self_attn.k_scale",
    "self_attn.v_proj.output_scale": "self_attn.v_scale",
}
# Of attention computed in FP8: ours multiplies queries and probabilities as they are.
UNUSED_SCALES: Final = ("self_attn.q_scale", "self_attn.prob_scale")


@dataclass(frozen=True)
class Fp8Tensor:
    """A matrix of a checkpoint in FP8."""

    values: Tensor  # [out, in] float8_e4m3fn
    scales: Tensor  # [] or [out]
    input_scale: Tensor | None  # []; None: activations are dynamic

    def pack(self, rows: Fp8Rows, dim: int, start: int, length: int) -> None:
        """The part that `Tensor.narrow` would take, as it is."""
        scales = self.scales.narrow(0, start, length) if dim == 0 and self.scales.dim() > 0 else self.scales
        rows.pack_fp8(self.values.narrow(dim, start, length), scales, self.input_scale)

    def dequantize(self) -> Tensor:
        """What the values stand for: [out, in] float32."""
        return self.values.float() * (self.scales.unsqueeze(1) if self.scales.dim() > 0 else self.scales)


def canonical_name(name: str) -> str:
    """Of a tensor that goes by several names; others keep theirs."""
    for theirs, ours in KV_SCALES.items():
        if name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name


def read_activations(config: Mapping[str, Any], source: str) -> Fp8Activations:
    """From a `quantization_config`. Raises UnsupportedModelError for all that is not FP8 in a form we compute."""
    method = str(config.get("quant_method"))
    if method not in _READERS:
        raise UnsupportedModelError(
            f"{source}: quantization_config: weights quantised with {method} are not supported, only FP8 by "
            f"{', '.join(_READERS)}"
        )
    activations = _READERS[method](config)
    if activations is None:
        raise UnsupportedModelError(
            f"{source}: quantization_config: this form of {method} is not supported, only FP8 (e4m3) weights with a "
            f"scale per tensor or per channel, and activations in FP8 too"
        )
    return activations


def _fp8(config: Mapping[str, Any]) -> Fp8Activations | None:
    if config.get("weight_block_size") is not None or config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        return None
    return _ACTIVATIONS.get(config.get("activation_scheme", "dynamic"))


def _compressed_tensors(config: Mapping[str, Any]) -> Fp8Activations | None:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1 or config.get("sparsity_config"):
        return None
    (group,) = groups.values()
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not (_is_fp8(weights) and _is_fp8(inputs) and weights.get("strategy") in ("tensor", "channel")):
        return None
    is_dynamic = inputs.get("dynamic")
    if inputs.get("strategy") not in ("tensor", "token") or not isinstance(is_dynamic, bool):
        return None
    return "dynamic" if is_dynamic else "static"


def _is_fp8(scheme: Any) -> bool:
    is_there = isinstance(scheme, dict) and scheme.get("symmetric", True)
    return is_there and scheme.get("num_bits") == 8 and scheme.get("type") == "float"


def _modelopt(config: Mapping[str, Any]) -> Fp8Activations | None:
    algorithms: Mapping[Any, Fp8Activations] = {"FP8": "static", "FP8_PER_CHANNEL_PER_TOKEN": "dynamic"}
    return algorithms.get(config.get("quant_algo"))


_ACTIVATIONS: Final[Mapping[Any, Fp8Activations]] = {"static": "static", "dynamic": "dynamic"}
_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Fp8Activations | None]]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
}
