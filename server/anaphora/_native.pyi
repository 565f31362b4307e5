"""The extension module (crate `server/native`): the console entry points, and the compiled protobuf descriptors."""

DESCRIPTORS: bytes
"""The serialised `FileDescriptorSet` of `proto/*.proto`; see `anaphora.wire`."""

def main(argv: list[str], child: list[str]) -> int:
    """Run the router (`argv[1] == "router"`) or the launcher, with the GIL released, and return its exit code.

    `child` is the command that starts this program again, and to which the launcher appends `router …`, `shard …` or
    `fetch …`. SIGINT and SIGTERM belong to the Rust side while it runs.
    """

_Memory = tuple[int, int]  # of a contiguous tensor: (data_ptr, numel)

def set_num_threads(num_threads: int) -> None:
    """Start the threads that all kernels of this process share: as many, the caller's included.

    Without it there are as many as cores.
    """

def paged_attention_f32(
    tensors: tuple[_Memory, _Memory, _Memory, _Memory],  # query, key cache, value cache, output
    rows: tuple[_Memory, _Memory, _Memory],  # int32: block tables, query starts, context lengths
    shape: tuple[int, int, int, int, int],  # heads, KV heads, head size, block size, blocks in a table
    options: tuple[float, int | None, float | None, _Memory | None],  # scale, sliding window, soft cap, sinks
) -> None:
    """`kernels/native`'s paged attention; ValueError if the sizes do not fit together."""

class PackedWeight:
    """A weight [rows, columns]; see `anaphora_kernels.linear.cpu`, also for the numbers of dtypes."""

    num_bytes: int
    formats: list[str]

    def __new__(cls, rows: int, columns: int) -> PackedWeight: ...
    def pack_floats(self, start: int, num_rows: int, values: int, dtype: int, floats_as: str) -> None: ...
    def pack_blocks(self, start: int, blocks: int, num_bytes: int, kind: int) -> None: ...
    def linear(self, num_rows: int, tensors: tuple[int, int | None, int], dtype: int) -> None:
        """`tensors` are x, bias and out."""

    def format_of(self, row: int) -> str: ...
    def unpack_rows(self, num_indices: int, indices: int, out: int, dtype: int) -> None: ...
