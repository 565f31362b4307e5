"""The worker under a miniature router: whatever the batching, tokens equal those of a plain loop."""

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anaphora.batch import Slots
from anaphora.errors import InvalidRequestError, InvalidStepError, NotConfiguredError, PoolSizeError, ShardError
from anaphora.kv_cache import KvCache
from anaphora.loader import LoadedModel, load_model
from anaphora.parallel import ParallelGroup
from anaphora.progress import Progress
from anaphora.recorded_pass import RecordedPass
from anaphora.wire import BlockTableDelta, Limits, RowStart, Sampling, Step
from anaphora.worker import PendingResult, Worker
from paged_driver import Driver
from step_driver import Sequence, StepDriver, collect, u32

NUM_BLOCKS = 64
LIMITS = Limits(block_size=16, max_rows=4, max_step_tokens=600, max_context=512, num_blocks=NUM_BLOCKS)
SAMPLED = Sampling(temperature=1.3, top_p=0.95, seed=11)
PENALISED = replace(SAMPLED, repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.2)
PROMPT_LENGTHS = (5, 1, 70, 33, 16, 12)


@pytest.fixture(scope="module")
def worker(tiny_llama: LoadedModel) -> Worker:
    worker = make_worker(tiny_llama)
    assert worker.configure(LIMITS) == NUM_BLOCKS
    return worker


@pytest.fixture
def driver(worker: Worker) -> StepDriver:
    worker.clear()
    return StepDriver(LIMITS, NUM_BLOCKS)


def make_worker(loaded: LoadedModel, out: io.StringIO | None = None) -> Worker:
    return Worker(loaded, ParallelGroup(), torch.device("cpu"), Progress(out or io.StringIO()))


def launch(worker: Worker, step: Step) -> PendingResult:
    return worker.launch(step, time.perf_counter())


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, 199, length).tolist() for length in PROMPT_LENGTHS]


def run(
    worker: Worker, driver: StepDriver, sequences: list[Sequence], *, chunk: int = 16, in_flight: int = 1
) -> list[list[int]]:
    driver.run(lambda step: launch(worker, step), sequences, chunk=chunk, in_flight=in_flight)
    return [sequence.outputs for sequence in sequences]


def test_a_llama_is_one_recorded_call_on_a_cpu(tiny_llama: LoadedModel) -> None:
    cpu = torch.device("cpu")
    kv_cache = KvCache(tiny_llama.kv_layout, NUM_BLOCKS, LIMITS.block_size, cpu)
    slots = Slots(LIMITS, NUM_BLOCKS, tiny_llama.config.vocab_size, cpu)
    with torch.inference_mode():
        assert RecordedPass.of(tiny_llama.model, kv_cache, slots) is not None


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("chunk", [1, 7, 16, 512])
def test_greedy_equals_a_plain_loop(
    worker: Worker, driver: StepDriver, tiny_llama: LoadedModel, chunk: int, in_flight: int
) -> None:
    """More sequences than slots, so that slots and blocks are used again."""
    sequences = [Sequence(prompt, 20) for prompt in prompts()]
    expected = [Driver(tiny_llama.model).greedy([prompt], 20, 512)[0] for prompt in prompts()]
    assert run(worker, driver, sequences, chunk=chunk, in_flight=in_flight) == expected


@pytest.mark.parametrize("sampling", [SAMPLED, PENALISED, replace(SAMPLED, top_k=20, min_p=0.02, typical_p=0.9)])
def test_seeds_do_not_depend_on_batch_mates_or_slots(worker: Worker, driver: StepDriver, sampling: Sampling) -> None:
    alone = []
    for prompt in prompts():
        alone += run(worker, driver, [Sequence(prompt, 20, sampling)])
    together = [Sequence(prompt, 20, sampling) for prompt in prompts()]
    assert run(worker, driver, together, in_flight=2) == alone
    mixed = [Sequence(prompt, 20, sampling if i % 2 else Sampling()) for i, prompt in enumerate(reversed(prompts()))]
    assert run(worker, driver, mixed, chunk=5)[1::2] == alone[::-1][1::2]
    assert len({tuple(tokens) for tokens in alone}) == len(alone), "the tiny model says different things"
    reseeded = Sequence(prompts()[0], 20, replace(sampling, seed=12))
    assert run(worker, driver, [reseeded]) != alone[:1]


@pytest.mark.parametrize("sampling", [Sampling(), PENALISED, replace(SAMPLED, min_new_tokens=15, stop_tokens=u32([7]))])
def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened(
    worker: Worker, driver: StepDriver, sampling: Sampling
) -> None:
    undisturbed = [Sequence(prompt, 24, sampling) for prompt in prompts()[:3]]
    expected = run(worker, driver, undisturbed)
    for sequence, tokens in zip([Sequence(prompt, 24, sampling) for prompt in prompts()[:3]], expected, strict=True):
        driver.start(sequence)
        for _ in range(12):
            step, sampling_rows = driver.plan([sequence], 16)
            collect(launch(worker, step).result(), sampling_rows)
        driver.finish(sequence)
        assert run(worker, driver, [sequence], chunk=9) == [tokens]


def test_a_copied_block_serves_a_second_sequence(worker: Worker, driver: StepDriver) -> None:
    """B shares 40 tokens with A: two whole blocks, and half of the third, which is copied."""
    prompt = prompts()[2]
    first, second = Sequence(prompt, 8), Sequence([*prompt[:40], 1, 2, 3], 8)
    expected = run(worker, driver, [Sequence(second.prompt, 8)])
    driver.start(first)
    step, sampling_rows = driver.plan([first], 512)
    collect(launch(worker, step).result(), sampling_rows)

    driver.start(second)
    second.blocks = [*first.blocks[:2], driver.free_blocks.pop()]
    second.num_computed = 40
    driver.copies.append((first.blocks[2], second.blocks[2]))
    while len(second.outputs) < 8:  # A goes on in the block that B has copied
        step, sampling_rows = driver.plan([first, second] if len(first.outputs) < 8 else [second], 512)
        collect(launch(worker, step).result(), sampling_rows)
    assert [second.outputs] == expected
    assert [first.outputs] == run(worker, driver, [Sequence(prompt, 8)])


def test_logprobs_and_alternatives(worker: Worker, driver: StepDriver) -> None:
    """Under the unmodified distribution, whatever the sampling; rows that do not ask get none."""
    sequences = [
        Sequence(prompts()[0], 1, replace(PENALISED, num_top_logprobs=3, temperature=0.1)),
        Sequence(prompts()[1], 1),
        Sequence(prompts()[2], 1, Sampling(num_top_logprobs=5)),
    ]
    for sequence in sequences:
        driver.start(sequence)
    step, _ = driver.plan(sequences, 512)
    result = launch(worker, step).result()
    assert result.id == step.id
    assert result.duration_us > 0
    assert [(top.index, top.tokens.size, top.logprobs.size) for top in result.top] == [(0, 3, 3), (2, 5, 5)]
    model = Driver(worker.loaded.model)
    for row, sequence in enumerate(sequences):
        logprobs = model.prompt_logits(sequence.prompt, 512)[-1].log_softmax(-1)
        np.testing.assert_allclose(result.logprobs[row], logprobs[result.tokens[row]], atol=1e-5)
        for top in result.top:
            if top.index == row:
                expected = logprobs.topk(top.tokens.size)
                assert top.tokens.tolist() == expected.indices.tolist()
                np.testing.assert_allclose(top.logprobs, expected.values, atol=1e-5)


def test_a_step_that_samples_nothing_has_an_empty_result(worker: Worker, driver: StepDriver) -> None:
    sequence = Sequence(prompts()[2], 1)
    driver.start(sequence)
    step, sampling_rows = driver.plan([sequence], 16)
    result = launch(worker, step).result()
    assert sampling_rows == []
    assert result.tokens.size == result.logprobs.size == 0


def one_row(**changes: object) -> Step:
    """A valid step with one row of three tokens in slot 1, but for the changes."""
    step = Step(
        id=1,
        started=(RowStart(1, Sampling()),),
        block_tables=(BlockTableDelta(1, 0, u32([5])),),
        slots=u32([1]),
        positions=u32([0]),
        num_tokens=u32([3]),
        samples=np.array([True]),
        has_tokens=np.array([True]),
        tokens=u32([1, 2, 3]),
    )
    return replace(step, **changes)


BAD_STEPS = {
    "no rows": ({name: u32([]) for name in ("slots", "positions", "num_tokens", "tokens")}, "no rows"),
    "slot not started": ({"started": ()}, r"slots \[1\] were not started"),
    "slot too large": ({"slots": u32([4])}, "slot 4 is not below max_rows = 4"),
    "finished slot too large": ({"finished": u32([9])}, "slot 9"),
    "token outside of the vocabulary": ({"tokens": u32([1, 2, 199])}, "token 199"),
    "block outside of the pool": ({"block_tables": (BlockTableDelta(1, 0, u32([64])),)}, "block 64"),
    "hole in the block table": ({"block_tables": (BlockTableDelta(1, 1, u32([5])),)}, "do not continue"),
    "block table too long": ({"block_tables": (BlockTableDelta(1, 0, u32(range(33))),)}, "do not continue"),
    "too few blocks": ({"positions": u32([14])}, "too few blocks"),
    "copied block outside of the pool": ({"block_copies": u32([[1, 64]])}, "block 64"),
    "nothing to continue": (
        {"has_tokens": np.array([False]), "num_tokens": u32([1]), "tokens": u32([])},
        "sampled nothing yet",
    ),
    "biased token": (
        {"started": (RowStart(1, Sampling(bias_tokens=u32([199]), bias_values=np.zeros(1, np.float32))),)},
        "token 199",
    ),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_steps_are_refused(worker: Worker, driver: StepDriver, name: str) -> None:
    changes, message = BAD_STEPS[name]
    if name == "no rows":
        changes = {**changes, "samples": np.empty(0, bool), "has_tokens": np.empty(0, bool)}
    with pytest.raises(InvalidStepError, match=message):
        launch(worker, one_row(**changes))
    worker.clear()
    assert launch(worker, one_row()).result().tokens.size == 1


def test_two_rows_of_one_slot_are_refused(worker: Worker, driver: StepDriver) -> None:
    twice = {name: np.repeat(getattr(one_row(), name), 2) for name in ("slots", "positions", "num_tokens", "samples")}
    twice |= {"has_tokens": np.array([True, True]), "tokens": u32([1, 2, 3] * 2)}
    with pytest.raises(InvalidStepError, match="two rows"):
        launch(worker, one_row(**twice))


# === configure ===


def test_an_fp8_cache_takes_a_quarter_of_float32_and_says_nearly_the_same(
    worker: Worker, driver: StepDriver, tiny_llama_path: Path
) -> None:
    loaded = load_model(
        tiny_llama_path,
        load_format="dummy",
        kv_cache_dtype="fp8_e4m3",
        device=torch.device("cpu"),
        group=ParallelGroup(),
    )
    assert loaded.fingerprint != worker.loaded.fingerprint
    fp8 = make_worker(loaded)
    fp8.configure(LIMITS)
    assert fp8.describe().kv_cache_dtype == "float8_e4m3fn"
    assert fp8.describe().kv_bytes_per_token * 4 == worker.describe().kv_bytes_per_token
    logprobs = []
    for each in (worker, fp8):
        sequences = [Sequence(prompt, 1) for prompt in prompts()[:4]]
        run(each, StepDriver(LIMITS, NUM_BLOCKS), sequences)
        logprobs.append([value for sequence in sequences for value in sequence.logprobs])
        each.clear()
    np.testing.assert_allclose(*logprobs, atol=0.05)
    assert logprobs[0] != logprobs[1]


def test_execute_needs_configure(tiny_llama: LoadedModel) -> None:
    with pytest.raises(NotConfiguredError):
        launch(make_worker(tiny_llama), one_row())


def test_the_pool_is_kept_for_the_same_sizes_and_never_larger_than_all_rows(tiny_llama: LoadedModel) -> None:
    out = io.StringIO()
    worker = make_worker(tiny_llama, out)
    limits = replace(LIMITS, num_blocks=0, memory_utilization=0.5)
    assert worker.configure(limits) == 4 * 512 // 16
    phases = out.getvalue()
    assert '"phase": "warm_up", "done": 1' in phases
    assert '"phase": "size_kv_cache", "done": 1' in phases
    assert launch(worker, one_row()).result().tokens.size == 1
    assert worker.configure(limits) == 4 * 512 // 16
    assert out.getvalue() == phases, "no second warm-up"
    with pytest.raises(InvalidStepError):  # but the slots are clear
        launch(worker, one_row(started=()))
    assert worker.configure(replace(limits, num_blocks=3)) == 3


def test_a_card_without_fp8_is_named(tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _device: "NVIDIA A100")
    with pytest.raises(ShardError, match=r"8\.9 or later \(Ada, Hopper\); NVIDIA A100 has 8\.0"):
        load_model(
            tiny_llama_path,
            load_format="dummy",
            kv_cache_dtype="fp8_e4m3",
            device=torch.device("cuda", 0),
            group=ParallelGroup(),
        )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"max_context": 513}, InvalidRequestError),
        ({"num_blocks": 1 << 40}, PoolSizeError),
    ],
)
def test_what_cannot_be_configured(tiny_llama: LoadedModel, changes: dict[str, int], error: type[Exception]) -> None:
    worker = make_worker(tiny_llama)
    with pytest.raises(error):
        worker.configure(replace(LIMITS, **changes))
    assert worker.configure(LIMITS) == NUM_BLOCKS
