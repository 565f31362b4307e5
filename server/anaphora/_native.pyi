"""The extension module (crate `server/native`): the console entry points, and the compiled protobuf descriptors."""

DESCRIPTORS: bytes
"""The serialised `FileDescriptorSet` of `proto/*.proto`; see `anaphora.wire`."""

def main(argv: list[str], child: list[str]) -> int:
    """Run the router (`argv[1] == "router"`) or the launcher, with the GIL released, and return its exit code.

    `child` is the command that starts this program again, and to which the launcher appends `router …`, `shard …` or
    `fetch …`. SIGINT and SIGTERM belong to the Rust side while it runs.
    """
