"""From a path to a model that is ready to run: configuration, architecture, weights, fingerprint."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final

import torch
from anaphora_kernels.linear.cpu import PackedRows
from anaphora_kernels.linear_fp8 import Fp8Rows

from anaphora import weights
from anaphora.errors import ModelFileError, ShardError, UnsupportedModelError
from anaphora.gguf_file import GgufFile
from anaphora.kv_cache import KvLayout
from anaphora.layers.parameters import Part, Placement
from anaphora.model_config import ModelConfig, parse_dtype, read_gguf_config, read_hf_config
from anaphora.models import CausalLM, model_class
from anaphora.parallel import ParallelGroup

_FP8_CAPABILITY: Final = (8, 9)


@dataclass(frozen=True)
class LoadedModel:
    """One rank of a model, its weights in place."""

    model: CausalLM
    config: ModelConfig
    dtype: torch.dtype  # of activations, and of weights that are not packed
    weight_formats: tuple[str, ...]  # of packed and FP8 weights, the most usual first; none if there are none
    kv_layout: KvLayout  # what one token needs in this rank's KV pool
    fingerprint: (
        str  # hex; the same on every rank and after every restart, and another if the function could be another
    )


def load_model(
    path: Path,
    *,
    load_format: str = "auto",  # "dummy": random weights of the configuration at `path`
    dtype: str = "auto",  # of activations and plain weights; the model's own on a GPU, bfloat16 on a CPU
    quantize: str = "auto",
    kv_cache_dtype: str = "auto",  # as `dtype`, or "fp8_e4m3"
    device: torch.device,
    group: ParallelGroup,
    progress: weights.Progress = lambda _done, _total: None,
) -> LoadedModel:
    """Loads a GGUF file or a Hugging Face directory onto `device`.

    `quantize` says what becomes of weights:

        none    they are held in `dtype`
        gguf    on a CPU: a GGUF file's Q4_0, Q4_1, Q8_0, Q4_K and Q6_K are held and multiplied in their blocks
        int8    on a CPU: they become bytes, 32 to a scale; what a GGUF file holds in blocks too
        fp8     on a GPU: products in FP8, as a checkpoint in FP8 has them; of others, all but embedding and head
        auto    gguf for such a file if `dtype` is auto, fp8 for a checkpoint in FP8, else none

    Raises ModelFileError (and what is below it) for files that are missing, damaged, or not supported, and
    ParallelError for a model that cannot be divided over the group.
    """
    if not path.exists():
        raise ModelFileError(f"{path} does not exist")
    if kv_cache_dtype == "fp8_e4m3" and device.type == "cuda" and not has_fp8(device):
        raise ShardError(f"--kv-cache-dtype fp8_e4m3 needs {_fp8_device(device)}. Leave it at auto.")
    gguf_file = GgufFile(path) if path.is_file() and path.suffix != ".json" else None
    config = read_gguf_config(gguf_file) if gguf_file else read_hf_config(path)
    torch_dtype = _resolve_dtype(dtype, config, device)
    quantize = _resolve_quantize(quantize, dtype, device, config, is_gguf=gguf_file is not None)
    keeps_floats = config.fp8_activations is not None and load_format != "dummy"
    with torch.inference_mode():
        placement = Placement(group, torch_dtype, device, quantize, keeps_floats)
        model = model_class(config.architecture)(config, placement)
        parts = model.parts()
        source: weights.Source
        if load_format == "dummy":
            source = weights.DummySource(parts)
        elif gguf_file:
            source = weights.GgufSource(
                gguf_file, list(parts), config.num_layers, model.from_gguf, keeps_blocks=quantize == "gguf"
            )
        else:
            source = weights.SafetensorsSource(path, config.fp8_activations)
        weights.check(source, parts, model.ignores)
        weights.load(source, parts, progress)
    kv_layout = model.kv_layout
    if kv_cache_dtype == "fp8_e4m3":
        kv_layout = replace(kv_layout, dtype=torch.float8_e4m3fn)
    fingerprint = _fingerprint(config, [str(torch_dtype), str(kv_layout.dtype), quantize], source)
    return LoadedModel(model, config, torch_dtype, _weight_formats(parts), kv_layout, fingerprint)


def has_fp8(device: torch.device) -> bool:
    """Whether this device multiplies FP8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY


def _fp8_device(device: torch.device) -> str:
    """What multiplies FP8, and why this device does not."""
    needed = "a GPU of compute capability 8.9 or later (Ada, Hopper)"
    if device.type == "cpu":
        return f"{needed}; on a CPU there is int8"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{needed}; {torch.cuda.get_device_name(device)} has {major}.{minor}"


def _resolve_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    if name != "auto":
        return parse_dtype(name)
    return torch.bfloat16 if device.type == "cpu" else config.dtype


def _resolve_quantize(name: str, dtype: str, device: torch.device, config: ModelConfig, *, is_gguf: bool) -> str:
    is_cpu = device.type == "cpu"
    if name == "auto":
        if is_gguf and is_cpu and dtype == "auto":
            return "gguf"
        return "fp8" if config.fp8_activations and has_fp8(device) else "none"
    if name == "fp8" and not has_fp8(device):
        raise UnsupportedModelError(f"--quantize fp8 needs {_fp8_device(device)}")
    if name in ("gguf", "int8") and (not is_cpu or dtype == "float16"):
        raise UnsupportedModelError(f"--quantize {name} needs a CPU, and --dtype bfloat16 or float32")
    if name == "gguf" and not is_gguf:
        raise UnsupportedModelError("--quantize gguf needs a GGUF file")
    return name


def _weight_formats(parts: Mapping[str, Part]) -> tuple[str, ...]:
    packed = [part.destination for part in parts.values() if isinstance(part.destination, PackedRows | Fp8Rows)]
    return tuple(name for name, _ in Counter(rows.format for rows in packed).most_common())


def _fingerprint(config: ModelConfig, choices: list[str], source: weights.Source) -> str:
    """Cheap: nothing is read but headers and the first bytes of each tensor. Every item is preceded by its length."""
    digest = blake2b(digest_size=32)
    table: Mapping[str, weights.TensorInfo] = source.table
    tensors = (f"{name} {info.shape} {info.dtype}" for name, info in sorted(table.items()))
    items = [repr(config), *choices, *tensors]
    for item in (*(text.encode() for text in items), *source.identity()):
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item)
    return digest.hexdigest()
