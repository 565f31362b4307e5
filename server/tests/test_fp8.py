"""Checkpoints in FP8, as the tools write them: what is read of them, and products in FP8, by torch on a CPU here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anaphora.errors import MissingTensorError, ModelFileError, TensorShapeError, UnsupportedModelError
from anaphora.kv_cache import KvCache, KvLayout
from anaphora.layers.embedding import VocabParallelHead
from anaphora.loader import LoadedModel, load_model
from anaphora.parallel import ParallelGroup
from anaphora_kernels.linear_fp8 import Fp8Weight
from held import held
from paged_driver import Driver
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

FP8 = torch.float8_e4m3fn
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
)
NAME = "model.layers.1.mlp.up_proj"
PROMPT = list(range(90))


def scheme(strategy: str, *, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": dynamic}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]} | more


# name: (quantization_config, whether weights have a scale per channel, whether activations are static)
DIALECTS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "fp8, static": ({"quant_method": "fp8", "activation_scheme": "static"}, False, True),
    "fp8, dynamic": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, False, False),
    "compressed-tensors, static": (
        compressed(scheme("tensor", dynamic=False), scheme("tensor", dynamic=False)),
        False,
        True,
    ),
    "compressed-tensors, dynamic": (
        compressed(scheme("channel", dynamic=False), scheme("token", dynamic=True)),
        True,
        False,
    ),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head"]}, False, True),
}


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in FP8 stay such."""
    monkeypatch.setattr("anaphora.loader.has_fp8", lambda _device: True)


def write(path: Path, dialect: str, edit: Callable[[dict[str, Tensor]], object] = lambda _: None) -> dict[str, Tensor]:
    """A tiny Llama in FP8 at `path`; what its weights stand for."""
    quantization, per_channel, is_static = DIALECTS[dialect]
    torch.manual_seed(0)
    LlamaForCausalLM(CONFIG).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    exact = dict(tensors)
    for name, weight in exact.items():
        if "proj" in name:
            largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max()
            scale = largest / 448
            tensors[name] = (weight / scale).clamp(-448, 448).to(FP8)
            tensors[f"{name}_scale"] = scale
            exact[name] = tensors[name].float() * scale
            if is_static:
                # Products of one input have one scale, as a rule.
                tensors[name.replace("weight", "input_scale")] = torch.tensor(0.02 if "v_proj" in name else 0.015)
    edit(tensors)
    save_file(tensors, path / "model.safetensors")
    edit_config(path, quantization_config=quantization)
    return exact


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def load(path: Path, group: ParallelGroup | None = None, **options: str) -> LoadedModel:
    options = {"dtype": "float32"} | options
    return load_model(path, device=torch.device("cpu"), group=group or ParallelGroup(), **options)


def logits(loaded: LoadedModel) -> Tensor:
    return Driver(loaded.model).prompt_logits(PROMPT, 32)


# === without products in FP8 ===


def test_weights_become_what_they_stand_for(tmp_path: Path, dialect: str) -> None:
    exact = write(tmp_path / "fp8", dialect)
    loaded = load(tmp_path / "fp8")
    assert loaded.weight_formats == ("float32",)
    for name, part in loaded.model.parts().items():
        if not part.is_optional:
            torch.testing.assert_close(held(part), exact[name], rtol=0, atol=0, msg=name)
    assert load(tmp_path / "fp8", quantize="int8").weight_formats == ("q8_0",)


def test_without_a_gpu_that_multiplies_fp8_it_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "fp8, dynamic")
    with pytest.raises(UnsupportedModelError, match=r"--quantize fp8 needs a GPU .*on a CPU there is int8"):
        load(tmp_path, quantize="fp8")


# === with them ===


@pytest.mark.usefixtures("on_a_gpu")
def test_products_are_computed_in_fp8(tmp_path: Path, dialect: str) -> None:
    exact = write(tmp_path, dialect)
    loaded = load(tmp_path)
    assert loaded.weight_formats[0] == "fp8_e4m3"
    assert loaded.fingerprint != load(tmp_path, quantize="none").fingerprint
    for name, part in loaded.model.parts().items():
        if not part.is_optional:
            torch.testing.assert_close(held(part), exact[name], rtol=1e-6, atol=0, msg=name)
    layer = loaded.model.layers[0]
    scales = [weight.input_scale for weight in (layer.self_attn.qkv_proj.weight, layer.mlp.down_proj.weight)]
    if DIALECTS[dialect][2]:
        assert scales == [torch.tensor(0.02), torch.tensor(0.015)]  # the largest of queries', keys' and values'
    else:
        assert scales == [None, None]

    # Activations are rounded to 3 bits of mantissa, and results here to bfloat16: a few percent, but not another model.
    actual, plain = logits(loaded), logits(load(tmp_path, quantize="none"))
    difference = (actual - plain).std() / plain.std()
    assert 0 < difference < 0.15, difference


@pytest.mark.usefixtures("on_a_gpu")
def test_floats_become_fp8_on_load_when_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path)
    quantized, exact = load(tmp_path, quantize="fp8"), load(tmp_path)
    assert (quantized.weight_formats, exact.weight_formats) == (("fp8_e4m3", "float32"), ("float32",))
    parts = exact.model.parts()
    for name, part in quantized.model.parts().items():
        torch.testing.assert_close(held(part), held(parts[name]), rtol=2**-4, atol=1e-3, msg=name)
    assert not isinstance(quantized.model.lm_head.weight, Fp8Weight)
    assert isinstance(quantized.model.lm_head, VocabParallelHead)
    difference = (logits(quantized) - logits(exact)).std() / logits(exact).std()
    assert difference < 0.15, difference


@pytest.mark.usefixtures("on_a_gpu")
def test_random_weights_of_such_a_checkpoint_are_fp8(tmp_path: Path) -> None:
    write(tmp_path, "fp8, static")
    (tmp_path / "model.safetensors").unlink()
    assert load(tmp_path, load_format="dummy").weight_formats[0] == "fp8_e4m3"


@pytest.mark.usefixtures("on_a_gpu")
def test_what_a_checkpoint_leaves_in_floats_stays_so(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{NAME.replace('up', 'down')}.weight"] = torch.full((32, 64), 1 / 3)
        del tensors[f"{NAME.replace('up', 'down')}.weight_scale"]

    write(tmp_path, "compressed-tensors, dynamic", edit)
    part = load(tmp_path).model.parts()[f"{NAME.replace('up', 'down')}.weight"]
    assert part.destination.format == "float32"
    assert bool((held(part) == 1 / 3).all())


@pytest.mark.usefixtures("on_a_gpu")
def test_ranks_hold_shares(tmp_path: Path) -> None:
    for dialect in ("fp8, static", "compressed-tensors, dynamic"):
        path = tmp_path / dialect
        exact = write(path, dialect)
        halves = [load(path, ParallelGroup(rank, 2)).model for rank in (0, 1)]
        for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj"):
            parts = [half.parts()[f"model.layers.0.{name}.weight"] for half in halves]
            joined = torch.cat([held(part) for part in parts], parts[0].dim)
            torch.testing.assert_close(joined, exact[f"model.layers.0.{name}.weight"], rtol=1e-6, atol=0, msg=name)
            assert {part.destination.format for part in parts} == {"fp8_e4m3"}


# === the cache's scales ===


@pytest.mark.parametrize(
    "names",
    [
        ("self_attn.k_scale", "self_attn.v_scale"),
        ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
        ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    ],
)
def test_scales_of_the_cache_are_read(tmp_path: Path, names: tuple[str, str]) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"model.layers.1.{names[0]}"] = torch.tensor(0.25)
        tensors[f"model.layers.1.{names[1]}"] = torch.tensor([2.0, 4.0])  # one per head
        tensors["model.layers.1.self_attn.q_scale"] = torch.tensor(1.0)

    write(tmp_path, "fp8, static", edit)
    model = load(tmp_path).model
    assert model.kv_scales.tolist() == [[[1, 1], [1, 1]], [[0.25, 0.25], [2, 4]]]
    cache = KvCache(KvLayout(2, 2, 8, FP8), 3, 16, torch.device("cpu"), model.kv_scales)
    assert cache.layer(1).value_scale.tolist() == [2, 4]
    ranks = [load(tmp_path, ParallelGroup(rank, 2)).model.kv_scales[1].tolist() for rank in (0, 1)]
    assert ranks == [[[0.25], [2]], [[0.25], [4]]]


# === what is wrong ===


def without_scale(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{NAME}.weight_scale"]


def without_input_scale(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{NAME}.input_scale"]


def in_blocks(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_scale"] = torch.ones(2, 2)


def half_merged(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight"] = torch.ones(64, 32)
    del tensors[f"{NAME}.weight_scale"], tensors[f"{NAME}.input_scale"]


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (without_scale, MissingTensorError, rf"{NAME}.weight is in FP8, but there is no {NAME}.weight_scale"),
        (without_input_scale, MissingTensorError, rf"there is no {NAME}.input_scale"),
        (in_blocks, TensorShapeError, rf"{NAME}.weight_scale has shape \[2, 2\], expected 1 or 64 numbers"),
        (
            half_merged,
            UnsupportedModelError,
            r"layers.1.mlp.(gate|up)_proj.weight: some of the products that are computed as one",
        ),
    ],
)
def test_damage_is_named(
    tmp_path: Path, edit: Callable[[dict[str, Tensor]], None], error: type[ModelFileError], message: str
) -> None:
    write(tmp_path, "fp8, static", edit)
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_without_a_word_in_the_configuration_it_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "fp8, dynamic")
    edit_config(tmp_path, quantization_config=None)
    with pytest.raises(UnsupportedModelError, match=r"proj.weight is in FP8, but .* no quantization_config"):
        load(tmp_path)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        {"quant_method": "fp8", "fmt": "e5m2"},
        compressed(scheme("channel", dynamic=False), None),  # weights alone
        compressed(scheme("block", dynamic=False), scheme("token", dynamic=True)),
        compressed(scheme("tensor", dynamic=False) | {"type": "int"}, scheme("tensor", dynamic=False)),
        compressed(scheme("tensor", dynamic=False), scheme("group", dynamic=True)),
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "gptq", "bits": 4},
    ],
)
def test_other_forms_are_refused(tmp_path: Path, quantization: dict[str, Any]) -> None:
    write(tmp_path, "fp8, dynamic")
    edit_config(tmp_path, quantization_config=quantization)
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        load(tmp_path)
