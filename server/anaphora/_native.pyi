"""The extension module (crate `server/native`): the console entry points, and the compiled protobuf descriptors."""

from types import TracebackType

DESCRIPTORS: bytes
"""The serialised `FileDescriptorSet` of `proto/*.proto`; see `anaphora.wire`."""

def main(argv: list[str], child: list[str]) -> int:
    """Run the router (`argv[1] == "router"`) or the launcher, with the GIL released, and return its exit code.

    `child` is the command that starts this program again, and to which the launcher appends `router …`, `shard …` or
    `fetch …`. SIGINT and SIGTERM belong to the Rust side while it runs.
    """

def set_num_threads(num_threads: int) -> None:
    """Start the threads that all kernels of this process share: as many, the caller's included.

    Without it there are as many as cores.
    """

# Below, tensors are their `data_ptr()`, contiguous if nothing else is said; dtypes are numbers (see
# `anaphora_kernels.native_dtypes`).

class AttentionPlan:
    """The rows of a step and how their attention is divided into work. ValueError if the sizes do not fit together."""

    def __init__(
        self,
        rows: tuple[int, int, int, int, int],  # rows, table columns; int32 block tables, query starts, context lengths
        heads: tuple[int, int, int],  # query heads, KV heads, head size
        cache: tuple[int, int],  # blocks, block size
        sliding_window: int | None,
    ) -> None: ...
    def run(
        self,
        query_dtype: int,
        cache_dtype: int,
        query: int,
        query_stride: int,  # elements from one token to the next
        key_cache: int,
        value_cache: int,
        output: int,
        scale: float,
        soft_cap: float | None,
        sinks: int | None,  # float32
    ) -> None:
        """`kernels/native`'s paged attention of one layer."""

class Program:
    """Kernels in the order in which they ran in a `with` block, on `num_tokens` tokens; memory is for `max_tokens`.

    Each must have had a whole number of rows per token: ValueError otherwise. It runs on one thread at a time, and not
    longer than the tensors live that were handed to the kernels.
    """

    def __init__(self, num_tokens: int, max_tokens: int) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __len__(self) -> int: ...
    def run(self, num_tokens: int, plans: list[AttentionPlan]) -> None:
        """The same kernels on the first `num_tokens` tokens of the same memory; `plans` as they came up first."""

def rms_norm(
    dtype: int,
    weight_dtype: int,
    x: int,
    residual: int | None,
    weight: int,
    out: int,
    rows: int,
    width: int,
    eps: float,
) -> None:
    """`kernels/native`'s rms_norm."""

def gate_mul_rows(dtype: int, is_gelu: bool, gate_up: int, out: int, rows: int, width: int) -> None:
    """`kernels/native`'s gate of an MLP: SiLU or GELU."""

def rope_kv_store(
    dtype: int,
    cache_dtype: int,
    tensors: tuple[int, int, int],  # query, key, value; heads contiguous
    strides: tuple[int, int, int],  # of theirs, from one token to the next, in elements
    angles: tuple[int, int, int],  # cosines, sines, angles per token
    caches: tuple[int, int, int],  # keys, values, cells
    indices: tuple[int, int],  # int64, tokens
    heads: tuple[int, int, int],  # query heads, KV heads, head size
) -> None:
    """`kernels/native`'s rope_kv_store."""

def sample(
    logits: tuple[int, int, int],  # dtype, address, elements from row to row
    scores: int | None,  # float32: the logits after biases and penalties, if there are any
    rows: int,
    vocab_size: int,
    random: tuple[int, int | None, int, int, int] | None,  # rows that draw: count, which, temperatures, seeds, counters
    truncations: tuple[int | None, int | None, int | None],  # of those rows: top-k, top-p, min-p
    top: tuple[int, int, int, int, int] | None,  # rows with alternatives: count, which, how many; tokens, logprobs
    out: tuple[int, int],  # tokens, logprobs
) -> None:
    """`kernels/native`'s sampling; integers are int64, floats float32."""

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
    @staticmethod
    def bfloat16_format() -> str: ...
    def unpack_rows(self, num_indices: int, indices: int, out: int, dtype: int) -> None: ...
