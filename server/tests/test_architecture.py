"""The walls of ARCHITECTURE.md that no compiler holds up: imports, who reads flags, what git must not track."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SERVING_PACKAGES = [REPOSITORY / "server" / "anaphora", REPOSITORY / "kernels" / "anaphora_kernels"]


def tracked(*patterns: str) -> list[Path]:
    """Files that git tracks, relative to the repository; not links."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    files = [REPOSITORY / name for name in listing.split("\0") if name]
    return [file for file in files if file.is_file() and not file.is_symlink()]


def mentions(pattern: str, files: list[Path]) -> list[str]:
    """`file:line: text` of every line that matches, comments left out."""
    expression = re.compile(pattern)
    return [
        f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if expression.search(re.sub(r"(#|//).*", "", line))
    ]


def python_files() -> list[Path]:
    return [file for package in SERVING_PACKAGES for file in package.rglob("*.py")]


def test_invariant_2_protobuf_types_stop_at_two_files() -> None:
    rust = [file for file in tracked("router/*.rs", "launcher/*.rs", "kernels/*.rs") if "/tests/" not in str(file)]
    found = mentions(r"\banaphora_proto\b", rust) + mentions(r"^\s*(from|import) google\.protobuf", python_files())
    seen = {line.split(":")[0] for line in found}
    assert seen == {"router/service/src/shard/grpc.rs", "server/anaphora/wire.py"}, "\n".join(found)


def test_invariant_3_pyo3_lives_in_one_crate() -> None:
    kinds = ("dependencies", "dev-dependencies", "build-dependencies")
    manifests = {file: tomllib.loads(file.read_text(encoding="utf-8")) for file in tracked("*Cargo.toml")}

    def dependents(name: str) -> list[str]:
        return [
            manifest["package"]["name"]
            for manifest in manifests.values()
            if any(name in manifest.get(kind, {}) for kind in kinds)
        ]

    assert dependents("pyo3") == ["anaphora-native"]
    assert dependents("anaphora-native") == []


def test_invariant_4_imports_point_one_way() -> None:
    linter = str(Path(sys.executable).with_name("lint-imports"))
    contracts = subprocess.run([linter], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert contracts.returncode == 0, contracts.stdout + contracts.stderr


def test_invariant_5_the_environment_is_read_in_one_file_a_program() -> None:
    rust = [file for file in tracked("*.rs") if "/src/" in str(file) and "cli" not in str(file.relative_to(REPOSITORY))]
    found = mentions(r"\benv::(var|vars|var_os|args)\b", rust)
    found += mentions(r"\bos\.(environ|getenv)\b|\bsys\.argv\b", python_files())
    allowed = {"server/anaphora/config.py", "server/anaphora/_cli.py", "server/anaphora/fetch.py"}
    assert [line for line in found if line.split(":")[0] not in allowed] == []


def test_invariant_7_nothing_generated_is_tracked() -> None:
    generated = re.compile(r"(_pb2(_grpc)?\.pyi?|\.binpb|\.so|\.whl|\.pyc)$|(^|/)(target|__pycache__|dist)/")
    names = [str(file.relative_to(REPOSITORY)) for file in tracked()]
    assert [name for name in names if generated.search(name)] == []


@pytest.mark.parametrize("pattern", [r"\bpickle\b", r"\btorch\.load\b", r"\beval\(", r"\bexec\(", r"\bmarshal\b"])
def test_invariant_10_nothing_deserialises_code(pattern: str) -> None:
    assert mentions(pattern, python_files()) == []
