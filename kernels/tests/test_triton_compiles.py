"""What the Triton kernels are specialised for. That they compile for cards that are not here, and fit, is shown by
`python kernels/bench/compile.py`, a part of `make test`; here, that it leaves none out."""

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from anaphora_kernels import AttentionMetadata, SamplingMetadata
from anaphora_kernels.paged_attention import triton_configs
from anaphora_kernels.sampling import LogitBias, RandomRows

SCRIPT = Path(__file__).parents[1] / "bench/compile.py"
TILE = ("BLOCK_M", "BLOCK_D", "BLOCK_N", "num_warps", "num_stages")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_compile", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.paged_attention, "machine", lambda _: ((9, 0), 132))
    return module


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_every_tile_is_compiled(bench: ModuleType, architecture: int) -> None:
    launches = [
        launch
        for family in bench.FAMILIES
        for _, run in bench.cases(architecture, family)
        for launch in bench.recorded(run)
    ]
    names = {launch.kernel.__name__ for launch in launches}
    assert {"attend", "merge", "draw", "gate_mul_rows", "rope_kv_store_heads", "rms_norm_rows", "copy_words"} <= names
    assert ("quantize_fp8_rows" in names) == (architecture >= 90)
    tiles = set()
    for launch in launches:
        if launch.kernel.__name__ == "attend":
            values = dict(launch.constants) | dict(launch.options)
            dtype = dict(launch.signature)["query"]
            tiles.add((dtype == "*fp32", *(values[name] for name in TILE)))
    for dtype, head_dim in product((torch.float32, torch.bfloat16), (64, 128, 256)):
        for block_m in triton_configs.tiles(head_dim, dtype):
            chosen = triton_configs.config((architecture // 10, architecture % 10), block_m, head_dim, dtype)
            tile = (block_m, head_dim, chosen.block_n, chosen.num_warps, chosen.num_stages)
            assert (dtype == torch.float32, *tile) in tiles, (dtype, tile)


def attention(bench: ModuleType, queries: list[int], contexts: list[int]) -> Callable[[], Any]:
    """A step, whose block tables are as wide as its longest context."""
    query = torch.empty(sum(queries), 32, 128, dtype=torch.bfloat16, device=bench.META)
    cache = torch.empty(4096, 16, 8, 128, dtype=torch.bfloat16, device=bench.META)
    tables = torch.empty(len(queries), -(-max(contexts) // 16), dtype=torch.int32, device=bench.META)
    metadata = AttentionMetadata.build(tables, queries, contexts)
    return lambda: bench.paged_attention.paged_attention(query, cache, cache, metadata, 0.1)


def sampling(bench: ModuleType, rows: int, max_top_k: int) -> Callable[[], Any]:
    """Every row random, in a vocabulary that is no multiple of 16 chunks."""
    floats, ints = torch.empty(rows, device=bench.META), torch.empty(rows, dtype=torch.int64, device=bench.META)
    random = RandomRows(None, floats, ints, ints, ints, max_top_k)
    logits = torch.empty(rows, 151_936, dtype=torch.bfloat16, device=bench.META)
    return lambda: bench.op("sampling")(logits, SamplingMetadata(LogitBias(ints, ints, floats), random=random))


def test_no_step_needs_a_kernel_that_another_step_of_its_kind_has_not_compiled(bench: ModuleType) -> None:
    """Lengths and numbers of rows change with every step: whoever tells them apart compiles while requests wait."""
    steps = [
        *(([1] * rows, [context] * rows) for rows in (1, 2, 3, 16, 17) for context in (10, 1000, 1024, 200_000)),
        *(([queries], [context]) for queries in (200, 208, 8192) for context in (8192, 12_500, 200_200)),
        *(([200] + [1] * rows, [5000] * (rows + 1)) for rows in (1, 5, 15)),
    ]
    runs = [attention(bench, *step) for step in steps]
    runs += [sampling(bench, rows, top_k) for rows in (1, 2, 3, 16) for top_k in (1, 16, 50)]
    compiled = defaultdict(set)
    for run in runs:
        for launch in bench.recorded(run):
            chosen = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
            constants = tuple((name, value) for name, value in launch.constants if name in chosen or value is None)
            compiled[launch.kernel.__name__, constants, launch.options].add(launch)
    assert {"attend", "merge", "plan_slices", "choose", "draw", "add_biases"} <= {name for name, *_ in compiled}
    for (name, *_), launches in compiled.items():
        assert len(launches) == 1, f"{name} is compiled {len(launches)} times for one choice of its constants"
