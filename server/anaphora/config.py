"""What a shard was told: flags and environment, read here, once, and nowhere else in Python.

`ShardConfig.parse(argv)` -> a frozen dataclass that is passed whole. The defaults stand in the dataclass. This file
imports nothing of torch, so that `anaphora fetch` stays quick.
"""

import argparse
import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Final

QUANTIZE: Final = ("auto", "none", "gguf", "int8", "fp8")
ATTENTION_BACKENDS: Final = ("auto", "triton", "cpu", "sdpa", "flashinfer", "flash_attention")
LOAD_FORMATS: Final = ("auto", "dummy")
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES: Final = ("auto", "fp8_e4m3")
DEVICES: Final = ("auto", "cpu", "cuda")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """Where the spans of steps go."""

    otlp_endpoint: str | None = None  # e.g. "http://127.0.0.1:4317"; None: nothing is traced
    otlp_service_name: str = "anaphora-shard"


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How log lines look. They go to stderr; stdout carries events for the launcher."""

    level: str = "info"
    json: bool = False


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """One rank of one replica."""

    model: Path  # a GGUF file or a Hugging Face directory
    socket: Path  # of the gRPC server, in a directory of mode 0700
    load_format: str = "auto"
    dtype: str = "auto"  # auto: the model's own on a GPU, bfloat16 on a CPU
    quantize: str = "auto"  # see `anaphora.loader.load_model`
    kv_cache_dtype: str = "auto"  # auto: as dtype; fp8_e4m3: half the memory of bfloat16
    device: str = "auto"
    attention_backend: str = "auto"  # a row of anaphora_kernels' registry
    cuda_graphs: bool = True
    rank: int = 0
    world_size: int = 1
    rendezvous: str | None = None  # URL for torch.distributed; needed if world_size > 1
    num_threads: int = 0  # 0: as many as the cores that this process may use
    telemetry: TelemetryConfig = TelemetryConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def parse(cls, argv: Sequence[str]) -> "ShardConfig":
        """The configuration in `argv` (without the program's name); exits with code 2 if there is none in it."""
        parser = _parser()
        flags = parser.parse_args(argv)
        if not 0 <= flags.rank < flags.world_size:
            parser.error(f"--rank {flags.rank} is not within --world-size {flags.world_size}")
        if flags.world_size > 1 and not flags.rendezvous:
            parser.error("--world-size above 1 needs --rendezvous")
        if flags.num_threads < 0:
            parser.error("--num-threads must not be negative")
        return cls(
            model=flags.model,
            socket=flags.socket,
            load_format=flags.load_format,
            dtype=flags.dtype,
            quantize=flags.quantize,
            kv_cache_dtype=flags.kv_cache_dtype,
            device=flags.device,
            attention_backend=flags.attention_backend,
            cuda_graphs=not flags.no_cuda_graphs,
            rank=flags.rank,
            world_size=flags.world_size,
            rendezvous=flags.rendezvous,
            num_threads=flags.num_threads or len(os.sched_getaffinity(0)),
            telemetry=TelemetryConfig(flags.otlp_endpoint, flags.otlp_service_name),
            log=LogConfig(flags.log_level, flags.json_output),
        )


def _parser() -> argparse.ArgumentParser:
    default = {field.name: field.default for field in fields(ShardConfig) if field.default is not MISSING}
    parser = argparse.ArgumentParser(
        "anaphora shard",
        description="One rank of a replica: holds weights and a KV pool, and executes the steps that a router sends.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a GGUF file, or a Hugging Face model directory")
    add("--socket", type=Path, required=True, help="the Unix socket to serve on")
    add("--load-format", choices=LOAD_FORMATS, default=default["load_format"], help="dummy: random weights")
    add("--dtype", choices=DTYPES, default=default["dtype"], help="of weights and activations")
    add("--quantize", choices=QUANTIZE, default=default["quantize"], help="weights in fewer bits")
    add("--kv-cache-dtype", choices=KV_CACHE_DTYPES, default=default["kv_cache_dtype"], help="of keys and values")
    add("--device", choices=DEVICES, default=default["device"], help="where to compute")
    add(
        "--attention-backend",
        choices=ATTENTION_BACKENDS,
        default=default["attention_backend"],
        help="computes attention",
    )
    add("--no-cuda-graphs", action="store_true", help="launch every kernel of a step by itself")
    add("--rank", type=int, default=default["rank"], help="of this process within the replica")
    add("--world-size", type=int, default=default["world_size"], help="ranks of the replica")
    add("--rendezvous", default=default["rendezvous"], help="where the ranks meet (torch.distributed init URL)")
    add("--num-threads", type=int, default=default["num_threads"], help="CPU threads; 0: the cores available")
    add("--otlp-endpoint", default=None, help="OpenTelemetry collector (gRPC) for the spans of steps")
    add("--otlp-service-name", default=TelemetryConfig().otlp_service_name, help="service.name of the spans")
    add("--log-level", choices=LOG_LEVELS, default=LogConfig().level, help="lowest level logged")
    add("--json-output", action="store_true", help="log lines as JSON")
    return parser


def cache_dir(environment: Mapping[str, str] | None = None) -> Path:
    """Where downloads are kept: `$ANAPHORA_CACHE`, else `anaphora` in the user's cache directory (XDG)."""
    environment = os.environ if environment is None else environment
    if explicit := environment.get("ANAPHORA_CACHE"):
        return Path(explicit)
    if xdg := environment.get("XDG_CACHE_HOME"):
        return Path(xdg) / "anaphora"
    return Path.home() / ".cache" / "anaphora"


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child, with `changes`."""
    return {**os.environ, **changes}


def limit_openmp_spinning(environment: MutableMapping[str, str] | None = None) -> None:
    """Lets torch's CPU threads sleep soon when they wait for each other. To be called before torch is imported.

    By default they spin for milliseconds, at both ends of every product, for a thread that may not be running. On two
    cores with one other busy process, a decoding step of 32 rows took 4.0 s that way, and takes 0.33 s this way. A
    shard shares its machine with the router at least. What the user has set stays.
    """
    environment = os.environ if environment is None else environment
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        environment["GOMP_SPINCOUNT"] = "100"  # libgomp takes 300,000, or 1,000 if it has more threads than cores
