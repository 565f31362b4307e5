"""`anaphora shard`: one rank of one replica. Loads its share of the model, then executes what a router sends."""

import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

import torch
from anaphora_kernels import registry
from anaphora_kernels.registry import BackendImportError, UnknownImplementationError

from anaphora import _native
from anaphora.config import LogConfig, ShardConfig
from anaphora.errors import EXIT_FAILURE, ShardError, exit_code_of
from anaphora.graphs import graph_capture
from anaphora.loader import load_model
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.service import ShardService, serve
from anaphora.telemetry import Telemetry
from anaphora.worker import Worker

_LOG: Final = logging.getLogger(__name__)
_GRACE_S: Final = 1.0  # for statuses on their way out


def main(argv: Sequence[str]) -> NoReturn:
    """Runs a shard and ends the process: with 0 after SIGTERM, 3 for a bad model file, else 1."""
    exit_code = _run(ShardConfig.parse(argv))
    sys.stdout.flush()
    sys.stderr.flush()
    # No clean-up by the interpreter: it would wait for threads that may be waiting for the device, or for lost ranks.
    os._exit(exit_code)


def _run(config: ShardConfig) -> int:
    _set_up_logging(config.log)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    # Ctrl-C reaches every process of a terminal; when a shard ends is for the launcher to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    try:
        return load_and_serve(config)
    except SystemExit:
        return 0
    except ShardError as error:
        sys.stderr.write(f"{error}\n")
        return exit_code_of(error)
    except Exception:
        _LOG.exception("the shard failed")
        return EXIT_FAILURE


def load_and_serve(config: ShardConfig) -> int:
    """Returns an exit code when the shard cannot go on; SIGTERM raises SystemExit out of here."""
    progress = Progress()
    device = _choose_device(config)
    # On a CPU the native kernels do the work, on threads of their own: torch's would wait for the same cores, spinning.
    torch.set_num_threads(1 if device.type == "cpu" else config.num_threads)
    _native.set_num_threads(config.num_threads)
    backend = None if config.attention_backend == "auto" else config.attention_backend
    if backend is not None:
        _check_backend(backend)
    group = ParallelGroup.join(config.rank, config.world_size, config.rendezvous or "", device)
    loaded = load_model(
        config.model,
        load_format=config.load_format,
        dtype=config.dtype,
        quantize=config.quantize,
        kv_cache_dtype=config.kv_cache_dtype,
        device=device,
        group=group,
        progress=lambda done, total: progress.phase("load", done, total, "tensors"),
    )
    telemetry = Telemetry(config.telemetry, config.rank)
    is_broken = threading.Event()
    try:
        new_capture = graph_capture(device, loaded.kv_layout.dtype, backend)
    except UnknownImplementationError as error:
        raise ShardError(f"--attention-backend {backend}: {error}") from error
    worker = Worker(loaded, group, device, progress, new_capture if config.cuda_graphs else None, backend)
    server = serve(ShardService(worker, telemetry, on_broken=is_broken.set), config.socket)
    # What lives now lives on: the collector need not look at it in the middle of a step again.
    gc.collect()
    gc.freeze()
    _LOG.info("rank %d of %d serves %s on %s", config.rank, config.world_size, config.model, device)
    progress.event("listening")
    try:
        is_broken.wait()
    finally:
        server.stop(_GRACE_S).wait()
        config.socket.unlink(missing_ok=True)
        telemetry.close()
    return EXIT_FAILURE


def _choose_device(config: ShardConfig) -> torch.device:
    """The device of this rank: on a host with several GPUs, rank r has GPU r."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    num_devices = torch.cuda.device_count()
    if config.rank >= num_devices:
        raise ShardError(f"rank {config.rank} needs a GPU of its own, but PyTorch sees {num_devices} here")
    device = torch.device("cuda", config.rank)
    torch.cuda.set_device(device)
    return device


def _check_backend(name: str) -> None:
    """Before any weight is loaded. Raises ShardError if it is not installed."""
    try:
        registry.load("paged_attention", name)
    except BackendImportError as error:
        raise ShardError(f"--attention-backend {name}: {error}. Install what it needs, or leave it at auto.") from error


def _exit_on_signal(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One object per line."""
        line = {
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _set_up_logging(config: LogConfig) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if config.json else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=config.level.upper(), handlers=[handler])
