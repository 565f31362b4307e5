"""Where results go: a JSON file and a Markdown table of the same name, with the machine that produced them."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a reader must know of the machine to judge a figure."""
    cpuinfo = _read("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    family = re.search(r"cpu family\s*:\s*(\d+)", cpuinfo)
    flags = re.search(r"flags\s*:\s*(.+)", cpuinfo)
    supported = set(flags[1].split()) if flags else set()
    memory = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    return {
        "cpu": model[1].strip() if model else platform.processor() or "unknown",
        "cpu_family": int(family[1]) if family else None,
        "cores": os.cpu_count(),
        "vector_extensions": [name for name in ("avx2", "avx512f", "amx_bf16") if name in supported],
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def save(name: str, payload: dict[str, Any], table: str) -> Path:
    """Writes `results/<name>.json` and `.md`; returns the latter."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(shlex.quote(argument) for argument in ["python", *_public(sys.argv)])
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    record = {"when": when, "command": command, "machine": machine(), **payload}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    host = record["machine"]
    extensions = ", ".join(host["vector_extensions"]) or "no wide vectors"
    cpu = f"{host['cpu']} (family {host['cpu_family']}; {extensions})"
    head = f"{when}, {cpu}, {host['cores']} cores, {host['memory_gib']} GiB"
    path = RESULTS / f"{name}.md"
    path.write_text(f"# {name}\n\n{head}\n\n`{command}`\n\n{table}\n")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well as plain text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def milliseconds(seconds: float | None) -> str:
    """Three significant digits are all that a shared machine supports."""
    return "-" if seconds is None else f"{seconds * 1000:.3g}"


def _public(arguments: Sequence[str]) -> list[str]:
    """The command line as a reader can repeat it: paths under the home directory are shown with `~`."""
    home = str(Path.home())
    root = str(Path(__file__).parent.parent) + "/"
    return [argument.replace(root, "").replace(home, "~") for argument in arguments]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
