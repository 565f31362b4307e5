"""The device code of sampling in Triton. `triton.py` launches it; its docstring has the picture."""

import triton
import triton.language as tl

GROUP = 128  # tokens that share a maximum
_GROUP = tl.constexpr(GROUP)
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
UNIT = tl.constexpr(2.0**40)  # of weights: the largest is this
LOWEST = tl.constexpr(-(2**31))
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)

# Integers, and pointers into merged allocations, that differ from batch to batch: see `BY_STEP` of paged_attention.
BY_BATCH = ("count", "max_top_k", "logit_sums", "best_scores", "logprobs", "normalizers")


@triton.jit(do_not_specialize=BY_BATCH)
def add_biases(scores, rows, tokens, values, count, vocab, BLOCK: tl.constexpr):
    """Sparse: values[i] to scores[rows[i], tokens[i]]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    row = tl.load(rows + i, mask=mask, other=0)
    token = tl.load(tokens + i, mask=mask, other=0)
    tl.atomic_add(scores + row * vocab + token, tl.load(values + i, mask=mask, other=0.0), mask=mask)


@triton.jit
def penalise(
    scores, rows, slots, seen, output_counts, repetition, frequency, presence, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    """A chunk of one penalised row, in place."""
    i = tl.program_id(1)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = token < vocab
    place = scores + tl.load(rows + i) * vocab + token
    slot = tl.load(slots + i) * vocab
    x = tl.load(place, mask=mask, other=0.0)
    if repetition is not None:
        factor = tl.load(repetition + i)
        repeated = tl.where(x < 0, x * factor, tl.div_rn(x, tl.broadcast_to(factor, x.shape)))
        x = tl.where(tl.load(seen + slot + token, mask=mask, other=0) != 0, repeated, x)
    if frequency is not None or presence is not None:
        counts = tl.load(output_counts + slot + token, mask=mask, other=0)
        if frequency is not None:
            x = x - counts.to(tl.float32) * tl.load(frequency + i)
        if presence is not None:
            x = x - tl.where(counts > 0, tl.load(presence + i), 0.0)
    tl.store(place, x, mask=mask)


@triton.jit(do_not_specialize=BY_BATCH)
def summarise(
    logits, scores, logit_maxima, logit_sums, best_scores, best_tokens, group_maxima, vocab,
    BLOCK: tl.constexpr, IS_SAME: tl.constexpr,
):  # fmt: skip
    """A chunk of one row."""
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    place = row * tl.num_programs(0) + chunk
    token = chunk * BLOCK + tl.arange(0, BLOCK)
    mask = token < vocab
    x = tl.load(logits + row * vocab + token, mask=mask, other=NEGATIVE_INFINITY).to(tl.float32)
    largest = tl.max(x, 0)
    shift = tl.where(largest == NEGATIVE_INFINITY, 0.0, largest)
    tl.store(logit_maxima + place, largest)
    tl.store(logit_sums + place, tl.sum(tl.exp(x - shift), 0))
    if not IS_SAME:
        x = tl.load(scores + row * vocab + token, mask=mask, other=NEGATIVE_INFINITY).to(tl.float32)
    best = tl.argmax(x, 0)
    tl.store(best_scores + place, tl.max(x, 0))
    tl.store(best_tokens + place, tl.minimum(chunk * BLOCK + best, vocab - 1))
    groups = tl.max(tl.reshape(x, [BLOCK // _GROUP, _GROUP]), 1)
    tl.store(group_maxima + place * (BLOCK // _GROUP) + tl.arange(0, BLOCK // _GROUP), groups)


@triton.jit(do_not_specialize=BY_BATCH)
def choose(
    logits, logit_maxima, logit_sums, best_scores, best_tokens, tokens, logprobs, normalizers, vocab, chunks,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One row from its chunks: as if it were greedy."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK_C)
    mask = chunk < chunks
    place = row * chunks + chunk
    maxima = tl.load(logit_maxima + place, mask=mask, other=NEGATIVE_INFINITY)
    sums = tl.load(logit_sums + place, mask=mask, other=0.0)
    largest = tl.max(maxima, 0)
    normalizer = largest + tl.log(tl.sum(sums * tl.exp(maxima - largest), 0))
    best = tl.load(best_scores + place, mask=mask, other=NEGATIVE_INFINITY)
    token = tl.load(best_tokens + row * chunks + tl.argmax(best, 0)).to(tl.int64)
    tl.store(tokens + row, token)
    tl.store(normalizers + row, normalizer)
    tl.store(logprobs + row, tl.load(logits + row * vocab + token).to(tl.float32) - normalizer)


@triton.jit(do_not_specialize=BY_BATCH)
def draw(
    logits, scores, group_maxima, rows, temperatures, seeds, counters, top_k, top_p, min_p, typical_p,
    values, candidates, tokens, logprobs, normalizers, vocab, num_groups, max_top_k,
    MAX_CANDIDATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One random row: its token and its log-probability."""
    i = tl.program_id(0).to(tl.int64)
    row = i
    if rows is not None:
        row = tl.load(rows + i)
    temperature = tl.load(temperatures + i)
    row_scores = scores + row * vocab
    row_maxima = group_maxima + row * num_groups
    largest = NEGATIVE_INFINITY
    for start in range(0, num_groups, BLOCK):
        largest = tl.maximum(largest, tl.max(_scaled(row_maxima, start, num_groups, temperature, BLOCK), 0))
    ceiling = _key(largest) + 1

    # === the tokens that can matter: floor <= key ===
    k = vocab
    p = 1.0
    if top_k is not None:
        k = tl.load(top_k + i).to(tl.int32)
        k = tl.where(k > max_top_k, vocab, k)
    if top_p is not None:
        p = tl.load(top_p + i)
    floor = tl.full([], LOWEST, tl.int64)
    if top_k is not None:
        if k <= num_groups:
            floor = _bisect(
                row_maxima, num_groups, temperature, k.to(tl.int64), floor, floor, ceiling, largest, 0.0, False, False,
                BLOCK,
            )  # fmt: skip
    if top_p is not None:
        if (p < 1) & (k == vocab):  # less likely than this, and all of them together weigh less than 1 - p
            floor = _key(largest + tl.log((1 - p) / vocab) - 1e-3)

    count = vocab
    mass = tl.zeros([], tl.int64)  # of the whole row
    if floor > LOWEST:
        found = 0
        for start in range(0, vocab, BLOCK):
            x = _scaled(row_scores, start, vocab, temperature, BLOCK)
            mass += tl.sum(_weight(x, largest), 0)
            token = start + tl.arange(0, BLOCK)
            is_candidate = (_key(x) >= floor) & (token < vocab)
            place = found + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
            target = i * MAX_CANDIDATES + place
            is_stored = is_candidate & (place < MAX_CANDIDATES)
            tl.store(values + target, x, mask=is_stored)
            tl.store(candidates + target, token, mask=is_stored)
            found += tl.sum(is_candidate.to(tl.int32), 0)
        tl.debug_barrier()  # what some threads have written, others read
        if found <= MAX_CANDIDATES:
            count = found
    is_compact = count < vocab

    # === the truncations: a lowest key, and a lowest key of typicality ===
    lowest = floor * 0 + LOWEST
    least_typical = lowest
    surprise = 0.0
    if is_compact:
        lowest, least_typical, surprise = _truncate(
            values + i * MAX_CANDIDATES, count, 1.0, mass, largest, floor, ceiling, k, p, min_p, typical_p, i, vocab,
            top_k is not None, top_p is not None, BLOCK,
        )  # fmt: skip
    else:
        lowest, least_typical, surprise = _truncate(
            row_scores, count, temperature, mass, largest, floor, ceiling, k, p, min_p, typical_p, i, vocab,
            top_k is not None, top_p is not None, BLOCK,
        )  # fmt: skip

    # === the draw, in the order of the vocabulary ===
    uniform = _uniform(tl.load(seeds + i), tl.load(counters + i))
    token = 0
    if is_compact:
        place = _invert(
            values + i * MAX_CANDIDATES, count, 1.0, largest, lowest, least_typical, surprise, uniform,
            typical_p is not None, BLOCK,
        )  # fmt: skip
        token = tl.load(candidates + i * MAX_CANDIDATES + place)
    else:
        token = _invert(
            row_scores, count, temperature, largest, lowest, least_typical, surprise, uniform, typical_p is not None,
            BLOCK,
        )  # fmt: skip
    token = tl.minimum(tl.maximum(token, 0), vocab - 1)  # whatever NaN does: a token
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, tl.load(logits + row * vocab + token).to(tl.float32) - tl.load(normalizers + row))


@triton.jit
def _truncate(
    source, count, temperature, row_mass, largest, floor, ceiling, k, p, min_p, typical_p, i, vocab,
    HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The keys that a token must reach: of its score, and of its typicality around `surprise`."""
    lowest = floor * 0 + LOWEST
    if HAS_TOP_K:
        if k < vocab:
            lowest = _bisect(
                source, count, temperature, k.to(tl.int64), floor, lowest, ceiling, largest, 0.0, False, False, BLOCK
            )
    if HAS_TOP_P:
        if p < 1:
            mass = row_mass
            if (k < vocab) | (count == vocab):
                mass = _mass(source, count, temperature, largest, lowest, BLOCK)
            wanted = tl.maximum(tl.ceil(p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64), 1)
            start = tl.maximum(lowest, floor)
            lowest = _bisect(
                source, count, temperature, wanted, start, lowest, ceiling, largest, 0.0, True, False, BLOCK
            )
    if min_p is not None:
        lowest = tl.maximum(lowest, _key(largest + tl.log(tl.load(min_p + i))))
    least_typical = floor * 0 + LOWEST
    surprise = 0.0
    if typical_p is not None:
        q = tl.load(typical_p + i)
        if q < 1:
            mass = _mass(source, count, temperature, largest, lowest, BLOCK)
            energy = 0.0  # minus the sum of weight * (score - largest)
            for start in range(0, count, BLOCK):
                x = _scaled(source, start, count, temperature, BLOCK)
                kept = (_key(x) >= lowest) & (x > NEGATIVE_INFINITY)
                energy += tl.sum(tl.where(kept, tl.exp(x - largest) * (largest - x), 0.0), 0)
            # score - largest of a token whose surprise equals the entropy
            surprise = largest - energy / (mass.to(tl.float64) / UNIT).to(tl.float32)
            wanted = tl.maximum(tl.ceil(q.to(tl.float64) * mass.to(tl.float64)).to(tl.int64), 1)
            least_typical = _bisect(
                source, count, temperature, wanted, least_typical, lowest, tl.full([], 1, tl.int64), largest, surprise,
                True, True, BLOCK,
            )  # fmt: skip
    return lowest, least_typical, surprise


@triton.jit
def _bisect(
    source, count, temperature, wanted, low, lowest, high, largest, surprise,
    BY_MASS: tl.constexpr, BY_TYPICALITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key in [low, high) such that the tokens from it on are `wanted` or more: as many, or as heavy.

    Of tokens whose scores reach `lowest`. The tokens from `low` on are enough.
    """
    while high - low > 1:
        middle = (low + high) // 2
        measured = tl.zeros([], tl.int64)
        for start in range(0, count, BLOCK):
            x = _scaled(source, start, count, temperature, BLOCK)
            key = _key(x)
            if BY_TYPICALITY:
                reaches = (_typicality(x, surprise) >= middle) & (key >= lowest)
            else:
                reaches = key >= middle
            if BY_MASS:
                measured += tl.sum(tl.where(reaches, _weight(x, largest), 0), 0)
            else:
                is_token = start + tl.arange(0, BLOCK) < count
                measured += tl.sum((reaches & is_token).to(tl.int64), 0)
        is_enough = measured >= wanted
        low = tl.where(is_enough, middle, low)
        high = tl.where(is_enough, high, middle)
    return low


@triton.jit
def _mass(source, count, temperature, largest, lowest, BLOCK: tl.constexpr):
    """The weight of the tokens whose scores reach `lowest`."""
    mass = tl.zeros([], tl.int64)
    for start in range(0, count, BLOCK):
        x = _scaled(source, start, count, temperature, BLOCK)
        mass += tl.sum(tl.where(_key(x) >= lowest, _weight(x, largest), 0), 0)
    return mass


@triton.jit
def _invert(
    source, count, temperature, largest, lowest, least_typical, surprise, uniform,
    HAS_TYPICAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The place of the first token at which the cumulative weight of what is kept exceeds its part `uniform`."""
    total = tl.zeros([], tl.int64)
    for start in range(0, count, BLOCK):
        x = _scaled(source, start, count, temperature, BLOCK)
        total += tl.sum(_kept_weight(x, largest, lowest, least_typical, surprise, HAS_TYPICAL), 0)
    target = tl.floor(uniform * total.to(tl.float64)).to(tl.int64)
    target = tl.minimum(target, total - 1)
    before = tl.zeros([], tl.int64)
    place = 0
    start = 0
    while start < count:
        x = _scaled(source, start, count, temperature, BLOCK)
        weights = _kept_weight(x, largest, lowest, least_typical, surprise, HAS_TYPICAL)
        weight = tl.sum(weights, 0)
        if before + weight > target:
            cumulative = before + tl.cumsum(weights, 0)
            place = start + tl.sum((cumulative <= target).to(tl.int32), 0)
            start = count
        before += weight
        start += BLOCK
    return tl.minimum(place, count - 1)


@triton.jit
def _kept_weight(x, largest, lowest, least_typical, surprise, HAS_TYPICAL: tl.constexpr):
    is_kept = _key(x) >= lowest
    if HAS_TYPICAL:
        is_kept = is_kept & (_typicality(x, surprise) >= least_typical)
    return tl.where(is_kept, _weight(x, largest), 0)


@triton.jit
def _scaled(source, start, count, temperature, BLOCK: tl.constexpr):
    """Scores at a temperature, in float32; -inf past the end."""
    place = start + tl.arange(0, BLOCK)
    x = tl.load(source + place, mask=place < count, other=NEGATIVE_INFINITY).to(tl.float32)
    return tl.div_rn(x, tl.broadcast_to(temperature + tl.zeros([1], tl.float32), x.shape))


@triton.jit
def _weight(x, largest):
    return (tl.exp(x - largest) * UNIT).to(tl.int64)


@triton.jit
def _key(x):
    """A float32 as an integer of the same order (int64 of 32 bits)."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _typicality(x, surprise):
    """The key of minus the distance from the typical score; 0 and below."""
    return _key(0.0 - tl.abs(x - surprise))


@triton.jit
def _uniform(seed, counter):
    """As reference.uniform: float64 in [0, 1)."""
    bits = _mix(_mix(seed.to(tl.uint64) + GOLDEN) + counter.to(tl.uint64) * GOLDEN)
    return (bits >> 11).to(tl.float64) * (2.0**-53)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)
