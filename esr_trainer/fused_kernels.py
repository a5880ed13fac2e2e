"""Kernels that go through the catalogue tile by tile and keep only sums of it: no (B, M, N) is ever stored.

Each works a tile of logits out from the embeddings, f = <u, v>, in float32, uses it and forgets it. Written in Triton;
its interpreter runs them on the CPU (`TRITON_INTERPRET=1`), and its compiler accepts them for compute capability 8.0
and 9.0 without a device. **They have not yet run on one**: what is tested of them is tested in the interpreter.

Noise comes from Philox (Salmon et al. 2011) with the step's seed as key and (item, context, expert) as counter, so a
draw is the same whatever the tiling, and a second kernel can make again what the first did not keep.

Axes: B contexts, M experts, N items, D embedding dimension, T tiles of TILE consecutive items, C chunks of consecutive
tiles, G tiles that are looked into, R races, P pairs of races. Every array is contiguous; queries (B, M, D), items
(N, M, D). ROWS, TILE and PART are powers of 2 from 16 on, as `tl.dot` asks; what they stand over is masked.
"""

import triton
import triton.language as tl


@triton.jit
def logits_of(
    queries, items, rows, columns, expert, num_contexts, num_items,
    M: tl.constexpr, D: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """A tile of logits, (ROWS, TILE), PART dimensions at a time; 0 outside."""
    found = tl.full((rows.shape[0], columns.shape[0]), 0.0, tl.float32)
    of_rows = queries + (rows.to(tl.int64) * M + expert)[:, None] * D
    of_columns = items + (columns.to(tl.int64) * M + expert)[None, :] * D  # more than 2^31 numbers
    for start in range(0, D, PART):
        part = start + tl.arange(0, PART)
        query = tl.load(of_rows + part[None, :], (rows < num_contexts)[:, None] & (part < D)[None, :], 0.0)
        item = tl.load(of_columns + part[:, None], (part < D)[:, None] & (columns < num_items)[None, :], 0.0)
        found = tl.dot(query, item, found, input_precision="ieee")
    return found


@triton.jit
def gumbel_of(seed, rows, expert, first, TILE: tl.constexpr):
    """Standard Gumbel noise of TILE items from `first` on, (ROWS, TILE): -log(-log(1 - U)), four items to a counter.

    U = (x + 1/2) / 2^32 is finest near 0, where the largest noise comes from: it reaches 22.9, where a float32 below 1
    would end at 16.6, which the best of 10^7 items exceeds every second time. -log(1 - U) is a series there.

    Args:
        first: a multiple of 4, one for all or one for each row, (ROWS, 1).
    """
    counter = first // 4 + tl.arange(0, TILE // 4)[None, :] + rows[:, None] * 0
    counter = counter.to(tl.uint32)
    of_row = counter * 0 + rows[:, None].to(tl.uint32)
    a, b, c, d = tl.philox(seed, counter, of_row, counter * 0 + expert.to(tl.uint32), counter * 0)
    drawn = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    uniform = (drawn.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = uniform * (1 + uniform * (1 / 2 + uniform * (1 / 3 + uniform / 4)))
    waited = tl.where(uniform < 0.03, series, -tl.log(tl.maximum(1 - uniform, 2.9802322387695312e-8)))
    return -tl.log(waited)


@triton.jit
def scan(
    queries, items, seed, best, sums, num_contexts, num_items, num_tiles, in_chunk,
    M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr, NOISY: tl.constexpr,
):  # fmt: skip
    """One pass: the largest key (logit + noise) of every tile, and what each chunk has of the log-normaliser.

    best (B, M, T); sums (B, M, C, 3): the largest logit of the chunk, the sum of e^(f - largest), and that of
    (f - largest) e^(f - largest). Programs: (blocks of contexts, C, M).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    chunk, expert = tl.program_id(1), tl.program_id(2)
    is_context = rows < num_contexts
    own = rows.to(tl.int64) * M + expert
    key = tl.load(seed)
    largest = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.full((ROWS,), 0.0, tl.float32)
    led = tl.full((ROWS,), 0.0, tl.float32)
    for tile in range(chunk * in_chunk, tl.minimum((chunk + 1) * in_chunk, num_tiles)):
        columns = tile * TILE + tl.arange(0, TILE)
        f = logits_of(queries, items, rows, columns, expert, num_contexts, num_items, M, D, PART)
        f = tl.where((columns < num_items)[None, :], f, -1e30)
        larger = tl.maximum(largest, tl.max(f, 1))
        share = tl.exp(f - larger[:, None])
        shrunk = tl.exp(largest - larger)
        led = shrunk * (led + total * (largest - larger)) + tl.sum((f - larger[:, None]) * share, 1)
        total = shrunk * total + tl.sum(share, 1)
        largest = larger
        if NOISY:
            f += gumbel_of(key, rows, expert, tile * TILE, TILE)
        tl.store(best + own * num_tiles + tile, tl.max(f, 1), is_context)
    to = sums + (own * tl.num_programs(1) + chunk) * 3
    tl.store(to, largest, is_context)
    tl.store(to + 1, total, is_context)
    tl.store(to + 2, led, is_context)


@triton.jit
def look(
    queries, items, seed, tiles, keys, num_contexts, num_items,
    M: tl.constexpr, D: tl.constexpr, FEW: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr, NOISY: tl.constexpr,
):  # fmt: skip
    """The keys of some tiles of each context, as `scan` made them: tiles (B, M, G) -> keys (B, M, G, TILE).

    -inf beyond the last item. Programs: (blocks of FEW contexts, G, M).
    """
    rows = tl.program_id(0) * FEW + tl.arange(0, FEW)
    expert = tl.program_id(2)
    is_context = rows < num_contexts
    own = rows.to(tl.int64) * M + expert
    place = own * tl.num_programs(1) + tl.program_id(1)
    first = tl.load(tiles + place, is_context, 0) * TILE  # of another tile in each row
    columns = first[:, None] + tl.arange(0, TILE)[None, :]
    of_columns = items + (columns * M + expert)[:, :, None] * D
    f = tl.full((FEW, TILE), 0.0, tl.float32)
    for start in range(0, D, PART):
        part = start + tl.arange(0, PART)
        query = tl.load(queries + own[:, None] * D + part[None, :], is_context[:, None] & (part < D)[None, :], 0.0)
        is_there = (columns < num_items)[:, :, None] & (part < D)[None, None, :]
        f += tl.sum(tl.load(of_columns + part[None, None, :], is_there, 0.0) * query[:, None, :], 2)
    if NOISY:
        f += gumbel_of(tl.load(seed), rows, expert, first[:, None], TILE)
    to = keys + place[:, None] * TILE + tl.arange(0, TILE)[None, :]
    tl.store(to, tl.where(columns < num_items, f, float("-inf")), is_context[:, None])


@triton.jit
def arrivals_of(f, log_times, rows, expert, num_contexts, R: tl.constexpr):
    """z = e^(f + log tau), at most e^80: there nothing of e^-z is left, and z e^-z is still 0."""
    log_time = tl.load(log_times + rows.to(tl.int64) * R + expert, rows < num_contexts, 0.0)
    return tl.exp(tl.minimum(f + log_time[:, None], 80.0))


@triton.jit
def race(
    queries, items, log_times, pairs, sums, num_contexts, num_items, num_tiles, in_chunk,
    M: tl.constexpr, D: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """What each chunk has of three sums over the items, for pairs (m, n) of races, n <= m: pairs (P, 2).

    With Z_m = z_1 + ... + z_m: sums (P, B, C, 3) of e^-Z_(m-1) (1 - e^-z_m), of e^-Z_m z_n, and of e^-Z_m z_n z_m.
    log_times (B, R). Programs: (blocks of contexts, C, P).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    chunk, pair = tl.program_id(1), tl.program_id(2)
    last, other = tl.load(pairs + 2 * pair), tl.load(pairs + 2 * pair + 1)
    arrived = tl.full((ROWS,), 0.0, tl.float32)
    slope = tl.full((ROWS,), 0.0, tl.float32)
    curve = tl.full((ROWS,), 0.0, tl.float32)
    for tile in range(chunk * in_chunk, tl.minimum((chunk + 1) * in_chunk, num_tiles)):
        columns = tile * TILE + tl.arange(0, TILE)
        z = tl.full((ROWS, TILE), 0.0, tl.float32)
        of_other = z
        exposure = z
        for expert in range(last + 1):
            exposure += z
            f = logits_of(queries, items, rows, columns, expert, num_contexts, num_items, M, D, PART)
            z = arrivals_of(f, log_times, rows, expert, num_contexts, R)
            of_other = tl.where(expert == other, z, of_other)
        before = tl.where((columns < num_items)[None, :], tl.exp(-exposure), 0.0)
        small = z * (1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5))))  # 1 - e^-z, without cancelling
        arrived += tl.sum(before * tl.where(z < 0.1, small, 1 - tl.exp(-z)), 1)
        flow = before * tl.exp(-z) * of_other
        slope += tl.sum(flow, 1)
        curve += tl.sum(flow * z, 1)
    to = sums + ((pair * num_contexts + rows).to(tl.int64) * tl.num_programs(1) + chunk) * 3
    tl.store(to, arrived, rows < num_contexts)
    tl.store(to + 1, slope, rows < num_contexts)
    tl.store(to + 2, curve, rows < num_contexts)


@triton.jit
def pull_of(
    queries, items, log_times, of_races, of_softmax, rows, columns, expert, num_contexts, num_items,
    M: tl.constexpr, D: tl.constexpr, R: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient by an expert's logits, (ROWS, TILE); 0 outside.

    With p = e^(f - LSE), and a, b, LSE from of_softmax (B, M, 3): p (a + b log p) + z_m sum_(n >= m) w_n e^-Z_n, with w
    from of_races (B, R).
    """
    is_context = rows < num_contexts
    f = logits_of(queries, items, rows, columns, expert, num_contexts, num_items, M, D, PART)
    own = of_softmax + (rows.to(tl.int64) * M + expert) * 3
    flat = tl.load(own, is_context, 0.0)[:, None]
    sloped = tl.load(own + 1, is_context, 0.0)[:, None]
    log_p = f - tl.load(own + 2, is_context, 0.0)[:, None]
    pull = tl.exp(log_p) * (flat + sloped * log_p)
    if R > 0:
        exposure = tl.zeros_like(f)
        arrivals = tl.zeros_like(f)
        behind = tl.zeros_like(f)
        for other in range(R):
            g = f
            if other != expert:
                g = logits_of(queries, items, rows, columns, other, num_contexts, num_items, M, D, PART)
            z = arrivals_of(g, log_times, rows, other, num_contexts, R)
            exposure += z
            arrivals = tl.where(other == expert, z, arrivals)
            weight = tl.load(of_races + rows.to(tl.int64) * R + other, is_context, 0.0)[:, None]
            behind += tl.where(other >= expert, weight * tl.exp(-exposure), 0.0)
        pull += arrivals * behind
    return tl.where(is_context[:, None] & (columns < num_items)[None, :], pull, 0.0)


@triton.jit
def pull_queries(
    queries, items, log_times, of_races, of_softmax, gradient, num_contexts, num_items, num_tiles, in_chunk,
    M: tl.constexpr, D: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """What each chunk has of the queries' gradient, sum_a pull(b, a) v(a): gradient (C, B, M, D).

    WIDE is the power of 2 from D on. Programs: (blocks of contexts, C, M).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    chunk, expert = tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, WIDE)
    found = tl.full((ROWS, WIDE), 0.0, tl.float32)
    for tile in range(chunk * in_chunk, tl.minimum((chunk + 1) * in_chunk, num_tiles)):
        columns = tile * TILE + tl.arange(0, TILE)
        pull = pull_of(
            queries, items, log_times, of_races, of_softmax, rows, columns, expert, num_contexts, num_items,
            M, D, R, PART,
        )  # fmt: skip
        of_columns = items + (columns.to(tl.int64) * M + expert)[:, None] * D
        item = tl.load(of_columns + d[None, :], (columns < num_items)[:, None] & (d < D)[None, :], 0.0)
        found = tl.dot(pull, item, found, input_precision="ieee")
    to = gradient + ((chunk.to(tl.int64) * num_contexts + rows) * M + expert)[:, None] * D
    tl.store(to + d[None, :], found, (rows < num_contexts)[:, None] & (d < D)[None, :])


@triton.jit
def pull_items(
    queries, items, log_times, of_races, of_softmax, gradient, num_contexts, num_items,
    M: tl.constexpr, D: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The items' gradient, sum_b pull(b, a) u(b): gradient (N, M, D), each number written once. Programs: (T, M)."""
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    expert = tl.program_id(1)
    d = tl.arange(0, WIDE)
    found = tl.full((TILE, WIDE), 0.0, tl.float32)
    for start in range(0, num_contexts, ROWS):
        rows = start + tl.arange(0, ROWS)
        pull = pull_of(
            queries, items, log_times, of_races, of_softmax, rows, columns, expert, num_contexts, num_items,
            M, D, R, PART,
        )  # fmt: skip
        of_rows = queries + (rows.to(tl.int64) * M + expert)[:, None] * D
        query = tl.load(of_rows + d[None, :], (rows < num_contexts)[:, None] & (d < D)[None, :], 0.0)
        found = tl.dot(tl.trans(pull), query, found, input_precision="ieee")
    to = gradient + (columns.to(tl.int64) * M + expert)[:, None] * D
    tl.store(to + d[None, :], found, (columns < num_items)[:, None] & (d < D)[None, :])
