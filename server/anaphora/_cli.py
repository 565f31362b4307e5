"""The console script `anaphora`: hands over to Rust, or to one of the two parts that are Python.

`anaphora --help` must answer in a blink, so this file imports `_native` and nothing else; torch comes in with
`anaphora.shard` only.
"""

import sys


def main() -> int:
    """Run `anaphora` with `sys.argv` and return the exit code."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "shard":
        from anaphora.config import limit_openmp_spinning  # noqa: PLC0415

        limit_openmp_spinning()
        from anaphora import shard  # noqa: PLC0415 (torch: seconds)

        shard.main(sys.argv[2:])
    if command == "fetch":
        from anaphora import fetch  # noqa: PLC0415

        return fetch.main(sys.argv[2:])
    from anaphora import _native  # noqa: PLC0415

    return _native.main(sys.argv, [sys.executable, "-m", "anaphora._cli"])


if __name__ == "__main__":
    sys.exit(main())
