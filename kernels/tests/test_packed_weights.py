"""Packed weights of every format: what they unpack to, and products with them, against plain torch and `gguf`."""

import gguf
import numpy as np
import pytest
import torch
from anaphora_kernels import embedding, linear
from anaphora_kernels.linear.cpu import BLOCK_COLUMNS, PackedWeight
from anaphora_kernels.testing import assert_close
from torch import Tensor

KINDS = [gguf.GGMLQuantizationType(kind) for kind in BLOCK_COLUMNS]
FORMATS = ["float32", "bfloat16", "int16", "q8_0", *KINDS]
COLUMNS = 512


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_blocks(rows: int, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Any bytes are quants; the halves that scale them are of a reasonable size. [rows, bytes of a row]."""
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(int(kind))
    blocks = random.integers(0, 256, (rows * COLUMNS // columns, size), dtype=np.uint8)
    halves = {gguf.GGMLQuantizationType.Q6_K: [208], gguf.GGMLQuantizationType.Q4_1: [0, 2]}
    for at in halves.get(kind, [0, 2] if kind == gguf.GGMLQuantizationType.Q4_K else [0]):
        blocks[:, at : at + 2] = random.uniform(-0.01, 0.01, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def packed(rows: int, form: str | gguf.GGMLQuantizationType) -> tuple[PackedWeight, Tensor]:
    """A weight in one format, and the floats that it was made from (GGUF's: that its blocks stand for)."""
    if isinstance(form, str):
        weight, values = PackedWeight(rows, COLUMNS, form), noise(rows, COLUMNS) / 16
        weight[:].pack(values)
        return weight, values
    blocks = random_blocks(rows, form)
    weight = PackedWeight(rows, COLUMNS, keeps_blocks=True)
    assert weight[:].keeps(form)
    weight[:].pack_blocks(torch.from_numpy(blocks), form)
    return weight, torch.from_numpy(gguf.quants.dequantize(blocks, form))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding(form: str | gguf.GGMLQuantizationType, dtype: torch.dtype) -> None:
    weight, values = packed(37, form)
    indices = torch.tensor([36, 0, 5, 5, 16])
    actual = embedding(indices, weight, dtype)
    assert actual.dtype == dtype
    tolerance = {"float32": 0.0, "bfloat16": 1 / 256, "q8_0": 1 / 127}.get(form, 1e-3)  # halves of products of halves
    tolerance = max(tolerance, 1 / 256 if dtype == torch.bfloat16 else 0.0)
    largest = values.abs().max()
    assert (actual.float() - values[indices]).abs().max() <= tolerance * largest


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 3, 40])
def test_linear(form: str | gguf.GGMLQuantizationType, dtype: torch.dtype, tokens: int) -> None:
    weight, _ = packed(37, form)
    values = embedding(torch.arange(37), weight, torch.float32)
    x, bias = noise(tokens, COLUMNS, seed=1).to(dtype), noise(37, seed=2).to(dtype)
    expected = x.double() @ values.double().T + bias.double()
    actual = linear(x, weight, bias)
    if form in ("float32", "bfloat16"):
        assert_close(actual, expected.to(dtype))
        return
    # x is rounded to integers: an error of at most half a step in every product, about 0.3 of one in quadrature.
    assert actual.dtype == dtype
    largest = x.float().abs().max() / 127 if tokens else torch.zeros(())
    step = x.float().reshape(-1, 64).norm(dim=1).max() / 32750 if form == "int16" and tokens else largest
    rounding = 0.02 if dtype == torch.bfloat16 else 0.0
    error = (actual.double() - expected).abs() - rounding * expected.abs()
    assert (error <= 1.5 * step * values.norm(dim=1)).all()


def test_rows_come_in_any_order_and_in_several_formats() -> None:
    kind = gguf.GGMLQuantizationType.Q4_K
    weight, values = PackedWeight(60, COLUMNS, "bfloat16", keeps_blocks=True), noise(20, COLUMNS)
    blocks = random_blocks(40, kind)
    weight[40:60].pack(values[:15])  # the last 5 rows are not given
    weight[0:40].pack_blocks(torch.from_numpy(blocks), kind)
    assert sorted(weight.formats) == ["bfloat16", "q4_1"]
    assert weight.num_bytes >= 40 * COLUMNS * 5 // 8 + 20 * COLUMNS * 2
    rows = embedding(torch.arange(60), weight, torch.float32)
    torch.testing.assert_close(rows[:40], torch.from_numpy(gguf.quants.dequantize(blocks, kind)), rtol=2e-3, atol=2e-3)
    assert torch.equal(rows[40:55], values[:15].bfloat16().float())
    assert not rows[55:].any()


def test_a_row_s_product_is_the_same_alone_and_among_others() -> None:
    for form in FORMATS:
        weight, _ = packed(100, form)
        x = noise(50, COLUMNS, seed=3)
        together = linear(x, weight)
        for start, count in [(0, 1), (3, 2), (7, 13)]:
            assert torch.equal(linear(x[start : start + count], weight), together[start : start + count])


def test_what_is_not_there_is_refused() -> None:
    weight = PackedWeight(32, 64)
    with pytest.raises(ValueError, match="0 of the weight's 32 rows have been loaded"):
        linear(noise(1, 64), weight)
    weight[:].pack(noise(32, 64))
    with pytest.raises(IndexError, match="row 32 of a weight of 32 rows"):
        embedding(torch.tensor([32]), weight, torch.float32)
    assert not weight[:].keeps(gguf.GGMLQuantizationType.Q8_0)  # nobody asked for it
    narrow = PackedWeight(32, 64, keeps_blocks=True)
    assert not narrow[:].keeps(gguf.GGMLQuantizationType.Q4_K)  # 256 columns to a block
