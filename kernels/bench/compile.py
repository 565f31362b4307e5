"""Compiles the Triton kernels for cards that are not here, and prints what each needs of a multiprocessor.

    python kernels/bench/compile.py                      every op, for sm_80, sm_90 and sm_100, on all cores (minutes)
    python kernels/bench/compile.py --op paged_attention --arch 90

The ops run as they are, on tensors without memory (torch's meta device); what they would launch is recorded, and then
compiled by Triton and its own ptxas. Triton keeps what it has compiled: the second time takes seconds. Exits with 1 if
a kernel needs more shared memory than the card has, or spills more than SPILLS bytes of registers per thread.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from anaphora_kernels import AttentionMetadata, SamplingMetadata, SharedPrefixes, registry
from anaphora_kernels.paged_attention import triton as paged_attention
from anaphora_kernels.sampling import LogitBias, Penalties, RandomRows
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that one program may have
SPILLS = {"attend": 512, "draw": 128}  # bytes per thread; other kernels: none
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint8: "u8",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
META = torch.device("meta")


# === what the ops launch ===


@dataclass(frozen=True)
class Launch:
    """A kernel and what it was specialised for."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]  # arguments that are divisible by 16
    options: tuple[tuple[str, int], ...]


def recorded(op: Callable[[], Any]) -> list[Launch]:
    """The launches of `op`, which are not carried out."""
    launches = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        del grid, warmup
        options = tuple((name, named.pop(name)) for name in ("num_warps", "num_stages") if name in named)
        launches.append(specialised(kernel, dict(zip(kernel.arg_names, args, strict=False)) | named, options))

    run = triton.runtime.JITFunction.run
    triton.runtime.JITFunction.run = record
    try:
        op()
    finally:
        triton.runtime.JITFunction.run = run
    return launches


def specialised(kernel: Any, arguments: dict[str, Any], options: tuple[tuple[str, int], ...]) -> Launch:
    """As Triton specialises a launch: None, 1 and constexpr are constants, multiples of 16 are known to be.

    Except for what the kernel says not to specialise.
    """
    signature, constants, aligned = [], [], []
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        is_plain = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and not is_plain):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((name, "*" + TYPES[value.dtype]))
            if value.storage_offset() * value.itemsize % 16 == 0 and not is_plain:  # allocations are aligned
                aligned.append(name)
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if value < 1 << 31 else "i64"))
            if value % 16 == 0 and not is_plain:
                aligned.append(name)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(aligned), options)


# === the cases: everything that the registry can choose ===


def attention(
    dtype: torch.dtype,
    head_dim: int,
    query_lengths: list[int],
    *,
    group: int = 4,
    block_size: int = 16,
    in_fp8: bool = False,
    is_shared: bool = False,
    sinks: bool = False,
    context: int = 200_000,
    **options: Any,
) -> Callable[[], Any]:
    """A step over contexts of some tokens, on 8 KV heads."""
    query = torch.empty(sum(query_lengths), 8 * group, head_dim, dtype=dtype, device=META)
    cache_dtype = torch.float8_e4m3fn if in_fp8 else dtype
    cache = torch.empty(1 << 16, block_size, 8, head_dim, dtype=cache_dtype, device=META)
    tables = torch.empty(len(query_lengths), context // block_size, dtype=torch.int32, device=META)
    if in_fp8:
        options |= dict.fromkeys(("key_scale", "value_scale"), torch.empty(8, device=META))
    options["sinks"] = torch.empty(8 * group, dtype=dtype, device=META) if sinks else None
    shared = None
    if is_shared:
        int32 = {"dtype": torch.int32, "device": META}
        rows, groups, starts = (
            torch.empty(len(query_lengths), **int32),
            torch.empty(2, **int32),
            torch.empty(3, **int32),
        )
        shared = SharedPrefixes(rows, starts, groups, rows, rows, len(query_lengths), 100_000)

    def run() -> None:
        metadata = AttentionMetadata.build(tables, query_lengths, [context] * len(query_lengths))
        metadata = AttentionMetadata(**vars(metadata) | {"shared_prefixes": shared})
        paged_attention.paged_attention(query, cache, cache, metadata, 0.1, **options)

    return run


def attentions(architecture: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every tile, with every option that compiles to other code."""
    bf16 = torch.bfloat16
    yield "decode bf16 d128", attention(bf16, 128, [1] * 64)
    yield "append bf16 d128", attention(bf16, 128, [200])
    # One slice: nothing is merged, which is other code.
    yield "decode bf16 d128 whole", attention(bf16, 128, [1], context=96)
    yield "prefill bf16 d128 whole", attention(bf16, 128, [8192], context=8192)
    lengths = {"decode": [1] * 64, "short": [16], "append": [200]}
    for head_dim, in_fp8 in product((64, 80, 128, 256), (False, True)):
        if architecture >= 90 or not in_fp8:
            name = f"whole bf16 d{head_dim}" + " fp8" * in_fp8
            yield f"decode {name}", attention(bf16, head_dim, [1], context=96, in_fp8=in_fp8)
            yield f"prefill {name}", attention(bf16, head_dim, [8192], context=8192, in_fp8=in_fp8)
            yield (
                f"prefill {name} all",
                attention(
                    bf16,
                    head_dim,
                    [8192],
                    context=8192,
                    in_fp8=in_fp8,
                    sliding_window=4096,
                    soft_cap=30.0,
                    sinks=True,
                ),
            )
    for dtype in (torch.float32, torch.float16):
        yield f"prefill {TYPES[dtype]} d128 whole", attention(dtype, 128, [8192], context=8192)
    for (kind, queries), head_dim in product(lengths.items(), (64, 80, 128, 256)):
        name = f"{kind} bf16 d{head_dim}"
        yield name, attention(bf16, head_dim, queries)
        yield f"{name} window", attention(bf16, head_dim, queries, sliding_window=4096)
        yield f"{name} all", attention(bf16, head_dim, queries, sliding_window=4096, soft_cap=30.0, sinks=True)
        if architecture >= 90:
            yield f"{name} fp8", attention(bf16, head_dim, queries, in_fp8=True)
    for head_dim, in_fp8 in product((64, 128, 256), (False, True)):
        if architecture >= 90 or not in_fp8:
            name = f"shared bf16 d{head_dim}" + " fp8" * in_fp8
            yield name, attention(bf16, head_dim, [1] * 64, is_shared=True, in_fp8=in_fp8)
    for block_size in (32, 128):
        yield f"decode bf16 d128 block {block_size}", attention(bf16, 128, [1] * 64, block_size=block_size)
        yield f"append bf16 d128 block {block_size}", attention(bf16, 128, [200], block_size=block_size)
    for (kind, queries), dtype, head_dim in product(lengths.items(), (torch.float32, torch.float16), (64, 128, 256)):
        yield f"{kind} {TYPES[dtype]} d{head_dim}", attention(dtype, head_dim, queries)


def small_ops(architecture: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The elementwise and copying ops in the shapes of Llama-3.1-8B."""
    caches: tuple[torch.dtype | None, ...] = (None, torch.float8_e4m3fn) if architecture >= 90 else (None,)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x, gate_up = torch.empty(64, 4096, dtype=dtype, device=META), torch.empty(64, 28672, dtype=dtype, device=META)
        heads, angles = (
            torch.empty(64, 48, 128, dtype=dtype, device=META),
            torch.empty(64, 64, dtype=dtype, device=META),
        )
        weight, cells = torch.empty(4096, dtype=dtype, device=META), torch.empty(64, dtype=torch.int64, device=META)
        name = TYPES[dtype]
        yield f"{name} residual", lambda x=x, weight=weight: op("rms_norm")(x, weight, 1e-5, residual=x)
        yield name, lambda x=x, weight=weight: op("rms_norm")(x, weight, 1e-5)
        yield f"{name} silu", lambda gate_up=gate_up: op("gate_mul")(gate_up, "silu")
        yield f"{name} gelu", lambda gate_up=gate_up: op("gate_mul")(gate_up, "gelu")
        yield name, lambda heads=heads, angles=angles: op("rope")(heads[:, :40], angles, angles)
        if architecture >= 90:
            scale = torch.empty((), device=META)
            yield name, lambda x=x: op("quantize_fp8")(x)
            yield f"{name} static", lambda x=x, scale=scale: op("quantize_fp8")(x, scale)
        for cache_dtype in caches:
            pool = torch.empty(32, 2, 64, 16, 8, 128, dtype=cache_dtype or dtype, device=META)
            scales = dict.fromkeys(("key_scale", "value_scale"), torch.empty(8, device=META) if cache_dtype else None)
            stored = (heads[:, 32:40], heads[:, 40:])
            after = (pool[0, 0], pool[0, 1], cells)
            label = name + " fp8" * (cache_dtype is not None)
            yield label, lambda stored=stored, after=after, scales=scales: op("kv_store")(*stored, *after, **scales)
            yield (
                label,
                lambda heads=heads, stored=stored, angles=angles, after=after, scales=scales: op("rope_kv_store")(
                    heads[:, :32], *stored, angles, angles, *after, **scales
                ),
            )
            yield label, lambda pool=pool, cells=cells: op("copy_blocks")(pool, cells, cells)


def samplings(_architecture: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Greedy, random, and with everything; 64 rows of Llama 3's vocabulary."""
    vocab = 128_256
    floats, ints = torch.empty(64, device=META), torch.empty(64, dtype=torch.int64, device=META)
    seen = torch.empty(64, vocab, dtype=torch.bool, device=META)
    counts = torch.empty(64, vocab, dtype=torch.int32, device=META)
    penalties = Penalties(ints, ints, seen, counts, floats, floats, floats)
    everything = RandomRows(ints, floats, ints, ints, ints, 50, floats, floats, floats)
    cases = {"everything": SamplingMetadata(LogitBias(ints, ints, floats), penalties, everything)}
    cases["random"] = SamplingMetadata(random=RandomRows(None, floats, ints, ints))
    cases["top-k"] = SamplingMetadata(random=RandomRows(None, floats, ints, ints, ints, 50))
    cases["top-p"] = SamplingMetadata(random=RandomRows(None, floats, ints, ints, top_p=floats))
    cases["top-k, top-p"] = SamplingMetadata(random=RandomRows(None, floats, ints, ints, ints, 50, floats))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        logits = torch.empty(64, vocab, dtype=dtype, device=META)
        for name, metadata in cases.items():
            yield f"{TYPES[dtype]} {name}", lambda logits=logits, metadata=metadata: op("sampling")(logits, metadata)


def op(name: str) -> Callable[..., Any]:
    return registry.select(name, "cuda", torch.bfloat16, "triton")


FAMILIES = {"paged_attention": attentions, "small": small_ops, "sampling": samplings}


# === compiling ===


@dataclass(frozen=True)
class Needs:
    """Of one program."""

    shared: int  # bytes
    registers: int  # per thread
    spilled: int  # bytes per thread
    warps: int


def compile_for(launch: Launch, architecture: int) -> Needs:
    names = [name for name, _ in launch.signature]
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs={(names.index(name),): value for name, value in launch.constants},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = dict(field.split(":") for field in usage.split() if field.count(":") == 1 and field[-1].isdigit())
    return Needs(compiled.metadata.shared, int(fields["REG"]), int(fields["STACK"]), compiled.metadata.num_warps)


@dataclass(frozen=True)
class Job:
    """One launch, by where it is found: another process finds it again."""

    architecture: int
    family: str
    case: int
    launch: int


def cases(architecture: int, family: str) -> list[tuple[str, Callable[[], Any]]]:
    """The cases of a family, on a card of this architecture."""
    paged_attention.machine = lambda _: ((architecture // 10, architecture % 10), 132)
    return list(FAMILIES[family](architecture))


def jobs(architectures: Iterable[int], families: Iterable[str]) -> Iterator[Job]:
    """Every launch once, in the order of the table."""
    for architecture in architectures:
        done = set()
        for family in families:
            for case, (_, run) in enumerate(cases(architecture, family)):
                for index, launch in enumerate(recorded(run)):
                    if launch not in done:
                        done.add(launch)
                        yield Job(architecture, family, case, index)


def compiled(job: Job) -> tuple[str, str, Needs]:
    """The kernel's name, the case's label, and what it needs."""
    label, run = cases(job.architecture, job.family)[job.case]
    launch = recorded(run)[job.launch]
    return launch.kernel.__name__, label, compile_for(launch, job.architecture)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    arguments.add_argument("--arch", type=int, action="append", choices=SHARED)
    arguments.add_argument("--op", choices=FAMILIES, action="append")
    chosen = arguments.parse_args()
    print("| sm | kernel | case | shared, KiB | registers | spilled, B | warps |\n|---|---|---|---|---|---|---|")
    all_jobs = list(jobs(chosen.arch or SHARED, chosen.op or FAMILIES))
    failures = 0
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for job, (name, label, needs) in zip(all_jobs, pool.map(compiled, all_jobs), strict=True):
            is_over = needs.shared > SHARED[job.architecture] or needs.spilled > SPILLS.get(name, 0)
            failures += is_over
            row = (job.architecture, name, label, f"{needs.shared / 1024:.1f}", needs.registers, needs.spilled)
            print("|", " | ".join(map(str, row)), "|", needs.warps, "|", "too much" * is_over, flush=True)
    if failures:
        sys.exit(f"{failures} kernels need more than a card has")


if __name__ == "__main__":
    main()
