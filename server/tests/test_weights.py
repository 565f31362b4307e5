"""Reading models: what each format gives, and how each kind of damage reads."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from anaphora.errors import (
    MissingTensorError,
    ModelFileError,
    TensorShapeError,
    UnexpectedTensorError,
    UnsupportedModelError,
)
from anaphora.gguf_file import GgufFile
from anaphora.layers.rotary import FactorScaling, LinearScaling, Llama3Scaling
from anaphora.loader import LoadedModel, load_model
from anaphora.model_config import parse_hf_config
from anaphora.parallel import ParallelGroup
from anaphora_kernels.linear.cpu import floats_format
from held import held
from paged_driver import Driver
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    attention_bias=True,
    rope_parameters=LLAMA3,
)
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny Llama, as transformers saves it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    path = tmp_path / "saved"
    model.save_pretrained(path)
    return path


def load(path: Path, group: ParallelGroup | None = None, **options: str) -> LoadedModel:
    options = {"dtype": "float32"} | options
    return load_model(path, device=torch.device("cpu"), group=group or ParallelGroup(), **options)


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    file = path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file)


def write_gguf(saved: Path, path: Path, kinds: Mapping[str, str] | None = None) -> None:
    """What llama.cpp's converter makes of a Llama: its names, its order of query and key rows, its rope factors.

    `kinds`: the quantised type of every tensor whose name has such a word in it.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_freq_base(LLAMA3["rope_theta"])
    writer.add_rope_dimension_count(8)
    writer.add_token_list([f"token {i}" for i in range(CONFIG.vocab_size)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG.num_hidden_layers)
    for name, tensor in load_file(saved / "model.safetensors").items():
        array = tensor.numpy()
        for projection, heads in (("q_proj", 4), ("k_proj", 2)):
            if projection in name:
                array = array.reshape(heads, 2, 4, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        array = np.ascontiguousarray(array)
        kind = next((gguf.GGMLQuantizationType[kind] for word, kind in (kinds or {}).items() if word in name), None)
        if kind is not None and array.ndim == 2:
            array = gguf.quants.quantize(array, kind)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(theirs, array, raw_dtype=kind if array.dtype == np.uint8 else None)
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 64)
    frequencies = 1.0 / LLAMA3["rope_theta"] ** (torch.arange(0, 8, 2) / 8)
    writer.add_tensor("rope_freqs.weight", (frequencies / scaling.scale(frequencies)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# === what is read ===


def test_gguf_gives_the_model_that_was_converted(saved: Path, tmp_path: Path) -> None:
    write_gguf(saved, tmp_path / "model.gguf")
    ours, expected = load(tmp_path / "model.gguf"), load(saved)
    assert isinstance(ours.config.rope_scaling, FactorScaling)
    parts = expected.model.parts()
    for name, part in ours.model.parts().items():
        assert torch.equal(held(part), held(parts[name])), name
    prompt = list(range(90))
    torch.testing.assert_close(
        Driver(ours.model).prompt_logits(prompt, 32), Driver(expected.model).prompt_logits(prompt, 32)
    )


KINDS = {"v_proj": "Q4_1", "up_proj": "Q4_0", "proj": "Q8_0", "embed_tokens": "Q8_0"}


def test_blocks_of_a_gguf_file_stay_as_they_are(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(saved, path, KINDS)
    cpu, group = torch.device("cpu"), ParallelGroup()
    kept = load_model(path, device=cpu, group=group)
    assert kept.dtype == torch.bfloat16
    head = floats_format(torch.bfloat16)  # as llama.cpp, it is left alone here
    assert kept.weight_formats == ("q8_0", "q4_1", "q4_0", head)
    exact, fine = load(path), load(path, quantize="gguf")
    assert exact.weight_formats == ("float32",)
    assert len({kept.fingerprint, exact.fingerprint, fine.fingerprint}) == 3
    parts = exact.model.parts()
    for name, part in fine.model.parts().items():
        torch.testing.assert_close(held(part), held(parts[name]), rtol=1e-3, atol=1e-4, msg=name)
    prompt = list(range(90))
    expected = Driver(exact.model).prompt_logits(prompt, 32)
    scale = expected.std()
    assert (Driver(fine.model).prompt_logits(prompt, 32) - expected).std() < 0.02 * scale
    assert (Driver(kept.model).prompt_logits(prompt, 32) - expected).std() < 0.04 * scale


def test_blocks_are_divided_over_ranks_unless_that_would_cut_them(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(saved, path, KINDS)
    whole = load(path, quantize="gguf").model.parts()
    ranks = [load(path, ParallelGroup(rank, 2), quantize="gguf").model.parts() for rank in (0, 1)]
    for name, part in whole.items():
        shares = [held(parts[name]) for parts in ranks]
        if shares[0].shape != part.shape:
            joined = torch.cat(shares, ranks[0][name].dim).narrow(0, 0, part.shape[0])
            torch.testing.assert_close(joined, held(part), rtol=0, atol=0, msg=name)
    layer = "model.layers.0."
    formats = {
        name: ranks[0][f"{layer}{name}.weight"].destination.format
        for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    }
    # 32 inputs of o_proj make one block; the 64 of down_proj are two.
    assert formats == {"self_attn.v_proj": "q4_1", "self_attn.o_proj": "float32", "mlp.down_proj": "q8_0"}


def test_weights_become_bytes_on_load(saved: Path) -> None:
    quantized, exact = load(saved, quantize="int8"), load(saved)
    assert quantized.weight_formats == ("q8_0",)
    prompt = list(range(90))
    expected = Driver(exact.model).prompt_logits(prompt, 32)
    assert (Driver(quantized.model).prompt_logits(prompt, 32) - expected).std() < 0.02 * expected.std()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"quantize": "gguf"}, "needs a GGUF file"), ({"quantize": "int8", "dtype": "float16"}, "needs a CPU")],
)
def test_what_cannot_be_quantised_is_refused(saved: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load(saved, **options)


@pytest.mark.parametrize("kind", sorted(gguf.GGML_QUANT_SIZES, key=int))
def test_every_quantised_type_is_read_as_the_gguf_package_reads_it(
    kind: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, size=(3, 2 * block_bytes), dtype=np.uint8)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("words", ["a", "", "ü" * 40])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("t", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.metadata == {"general.architecture": "llama", "words": None, "numbers": (1, 2, 3)}
    assert file.tensors["t"].shape == (3, 2 * block_elements)
    try:
        expected = gguf.quants.dequantize(raw, kind)
    except NotImplementedError:
        with pytest.raises(ModelFileError, match=f"tensor t is {kind.name}, which cannot be read"):
            file.read("t")
    else:
        assert np.array_equal(file.read("t").numpy(), expected, equal_nan=True)


def test_random_weights_depend_on_names_alone_and_are_divided_like_any(saved: Path) -> None:
    for weights in saved.glob("*.safetensors"):
        weights.unlink()
    whole, again = load(saved, load_format="dummy"), load(saved / "config.json", load_format="dummy")
    halves = [load(saved, ParallelGroup(rank, 2), load_format="dummy") for rank in (0, 1)]
    assert whole.fingerprint == again.fingerprint == halves[0].fingerprint == halves[1].fingerprint
    for name, part in whole.model.parts().items():
        assert torch.equal(held(part), held(again.model.parts()[name]))
        shares = [held(half.model.parts()[name]) for half in halves]
        divided = shares[0].shape != part.shape
        joined = torch.cat(shares, halves[0].model.parts()[name].dim) if divided else shares[1]
        assert torch.equal(joined.narrow(0, 0, part.shape[0]), held(part)), name
    assert torch.isfinite(Driver(whole.model).prompt_logits([1, 2, 3], 2)).all()


def test_dtype_and_progress(saved: Path) -> None:
    steps: list[tuple[int, int]] = []
    loaded = load_model(
        saved,
        dtype="bfloat16",
        device=torch.device("cpu"),
        group=ParallelGroup(),
        progress=lambda done, total: steps.append((done, total)),
    )
    parts = [part for part in loaded.model.parts().values() if not part.is_optional]
    assert steps == [(done, len(parts)) for done in range(len(parts) + 1)]
    for part in parts:
        to = part.destination
        if isinstance(to, torch.Tensor):
            assert to.dtype == torch.bfloat16
        else:
            assert to.weight.formats == [floats_format(torch.bfloat16)]
    exact = load(saved)
    ours = Driver(loaded.model).prompt_logits(list(range(40)), 16)
    torch.testing.assert_close(ours, Driver(exact.model).prompt_logits(list(range(40)), 16), rtol=0.1, atol=0.1)


def test_the_fingerprint_changes_with_what_is_computed(saved: Path) -> None:
    prints = [load(saved).fingerprint, load(saved, dtype="bfloat16").fingerprint]
    assert load(saved).fingerprint == prints[0]
    edit_tensors(saved, lambda tensors: tensors[NAME].mul_(2))
    prints.append(load(saved).fingerprint)
    edit_config(saved, rms_norm_eps=1e-3)
    prints.append(load(saved).fingerprint)
    assert len(set(prints)) == len(prints)


# === damage ===


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def swap_shape(tensors: dict[str, Tensor]) -> None:
    tensors[NAME] = tensors[NAME].T.contiguous()


SAFETENSORS_DAMAGE: dict[str, tuple[Callable[[Path], object], type[ModelFileError], str]] = {
    "missing tensor": (
        lambda path: edit_tensors(path, lambda tensors: tensors.pop(NAME)),
        MissingTensorError,
        f"1 of 29 tensors are missing: {NAME}",
    ),
    "tensor too many": (
        lambda path: edit_tensors(path, lambda tensors: tensors.update(surprise=torch.zeros(2))),
        UnexpectedTensorError,
        "no place for 1 tensors: surprise",
    ),
    "wrong shape": (
        lambda path: edit_tensors(path, swap_shape),
        TensorShapeError,
        rf"model.safetensors: tensor {NAME} has shape \[32, 64\], but the configuration implies \[64, 32\]",
    ),
    "other sizes in the configuration": (
        lambda path: edit_config(path, intermediate_size=48),
        TensorShapeError,
        r"has shape \[64, 32\], but the configuration implies \[48, 32\]",
    ),
    "more layers in the configuration": (
        lambda path: edit_config(path, num_hidden_layers=3),
        MissingTensorError,
        r"13 of 42 tensors are missing: model.layers.2.* and 8 more",
    ),
    "truncated data": (lambda path: truncate(path / "model.safetensors", 9000), ModelFileError, "not a whole"),
    "truncated header": (lambda path: truncate(path / "model.safetensors", 100), ModelFileError, "is truncated"),
    "empty file": (lambda path: truncate(path / "model.safetensors", 0), ModelFileError, "not a safetensors file"),
    "no file": (lambda path: (path / "model.safetensors").unlink(), ModelFileError, r"holds no \*.safetensors"),
    "missing shard": (
        lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        ModelFileError,
        "names 1 files that are missing: b.safetensors",
    ),
    "damaged index": (
        lambda path: (path / "model.safetensors.index.json").write_text("{}"),
        ModelFileError,
        "index.json is damaged",
    ),
    "damaged configuration": (lambda path: truncate(path / "config.json", 50), ModelFileError, "cannot be read"),
}


@pytest.mark.parametrize("damage", SAFETENSORS_DAMAGE)
def test_damage_to_a_directory_is_named(saved: Path, damage: str) -> None:
    inflict, error, message = SAFETENSORS_DAMAGE[damage]
    inflict(saved)
    with pytest.raises(ModelFileError, match=message) as raised:
        load(saved)
    assert raised.type is error


def test_damage_to_a_gguf_file_is_named(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(saved, path)
    whole = path.read_bytes()

    def check(data: bytes, message: str) -> None:
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=message):
            load(path)

    check(whole[:-1000], "is truncated: tensor .* ends at byte")
    check(whole[:200], "its header is damaged")
    check(b"", "cannot be read")
    check(b"PK" + whole[2:], "not a GGUF file: it starts with b'PKUF")
    check(whole[:4] + b"\x01" + whole[5:], "GGUF version 1")
    check(whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"), f"missing: {NAME}")
    check(
        whole.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma"), "architecture 'gemma' is not supported"
    )


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        load(tmp_path / "nowhere")


# === config.json ===


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedModelError, "GPT2LMHeadModel is not supported"),
        ({"architectures": None}, ModelFileError, "must name one architecture"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, UnsupportedModelError, "quantization_config"),
        ({"vocab_size": None}, ModelFileError, "lacks vocab_size"),
        ({"vocab_size": "97"}, ModelFileError, "vocab_size is '97', expected int"),
        ({"rope_parameters": {"rope_type": "yarn"}}, UnsupportedModelError, "scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, ModelFileError, "lacks factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModelError, "partial_rotary_factor"),
        ({"torch_dtype": "int8"}, UnsupportedModelError, "dtype int8"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused(
    saved: Path, change: dict[str, object], error: type[ModelFileError], message: str
) -> None:
    raw = json.loads((saved / "config.json").read_text())
    raw.pop("dtype", None)
    (saved / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ModelFileError, match=message) as raised:
        load(saved)
    assert raised.type is error


def test_old_and_new_ways_to_write_rope() -> None:
    sizes = CONFIG.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    sizes.pop("rope_parameters")
    llama3 = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    expected = Llama3Scaling(8.0, 1.0, 4.0, 64)
    for raw, theta, scaling in [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 500000, "rope_scaling": llama3}, 5e5, expected),
        ({"rope_parameters": llama3 | {"rope_theta": 5e5}}, 5e5, expected),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}}, 1e4, LinearScaling(2.0)),
    ]:
        config = parse_hf_config(sizes | raw, "config.json")
        assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_old_and_new_ways_to_write_gemma3() -> None:
    sizes = {"architectures": ["Gemma3ForCausalLM"], "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 7, "num_attention_heads": 4, "max_position_embeddings": 256}
    kinds = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    linear = {"rope_type": "linear", "factor": 8.0}
    nested = {"full_attention": linear | {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    for raw, scaling, windows in [
        ({}, None, 4096),
        ({"rope_theta": 1000000, "rope_local_base_freq": 10000, "sliding_window_pattern": 6}, None, 4096),
        ({"rope_scaling": linear, "sliding_window": 8}, LinearScaling(8.0), 8),
        ({"rope_parameters": nested, "layer_types": kinds, "sliding_window": 8}, LinearScaling(8.0), 8),
    ]:
        config = parse_hf_config(sizes | raw, "config.json")
        assert (config.rope_theta, config.local_rope_theta, config.rope_scaling) == (1e6, 1e4, scaling)
        assert config.windows == (windows,) * 5 + (None, windows)
        assert (config.head_dim, config.attention_scale, config.tie_word_embeddings) == (256, 1 / 16, True)
    for change, message in [
        ({"layer_types": ["full_attention"] * 6 + ["linear_attention"]}, "type 'linear_attention'"),
        ({"layer_types": kinds[1:]}, "a list of 7 names"),
        ({"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"rope_parameters": {"sliding_attention": linear}}, "scaled rotary frequencies"),
    ]:
        with pytest.raises(ModelFileError, match=message):
            parse_hf_config(sizes | change, "config.json")
