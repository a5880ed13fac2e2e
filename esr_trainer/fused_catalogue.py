"""The catalogue through `esr_trainer.fused_kernels`: candidates, sums over all items and their gradients, no (B, M, N).

1. `draw`: one pass for logits, noise, the best key of every tile of items, and log-normaliser and entropy. The K best
   items lie in the K tiles of the largest best keys: only these are looked into.
2. `summed`: the stopping times of `ca-poisson`, a pass for each step of Halley's iteration, and what stands for the
   logits from there on; its backward is one pass for the queries and one for the items.

Axes: B batch, M experts, N items, D embedding dimension, K candidates, T tiles of items, C chunks of consecutive tiles,
G tiles that are looked into, R races.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from esr_trainer import fused_kernels as kernels
from esr_trainer.inclusion import first_guess, halley, log_stopping_times
from esr_trainer.policy import in_turn
from esr_trainer.quotas import quotas
from esr_trainer.shards import SummedLogits

WARPS = 8
"""Of every kernel: with fewer, a compiler for compute capability 9.0 spills registers at D = 64 and M = 4."""

NARROW = 64
"""D above which the tiles of the gradient are halved: it holds (tile, D) of sums in registers."""

EARLY = -10.0
"""log z of the largest item at the time that the first guess goes by: e^-z is 1 to 5e-5, and e^-20 a float32."""

NOT_HERE = -1e30
"""log tau of races that are solved elsewhere: nothing arrives."""

FEW = 4
"""Contexts whose logits are held at once, where sums in float32 do not tell a stopping time."""


class Tiling(NamedTuple):
    """How the kernels go through (B, N); no result depends on it but by rounding."""

    rows: int = 64
    """Contexts of a tile."""
    tile: int = 64
    """Items of a tile."""
    part: int = 16
    """Dimensions multiplied at a time: a float32 product in registers holds all of them."""
    few: int = 8
    """Contexts whose own tiles are looked into at a time."""
    chunks: int = 256
    """Most parts of the catalogue that programs go through side by side."""

    def of_gradient(self, dimension: int) -> "Tiling":
        """The same for kernels that hold D numbers for every row or item."""
        return self if dimension <= NARROW else self._replace(rows=self.rows // 2, tile=self.tile // 2)


TILING = Tiling()


class Scanned(NamedTuple):
    """What one pass over the catalogue found."""

    candidates: Tensor
    """(B, K), in the order of the positions."""
    largest: Tensor
    """Largest logit, (B, M)."""
    log_normaliser: Tensor
    """(B, M)."""
    entropy: Tensor
    """Of every expert's softmax, (B, M)."""


def draw(
    queries: Tensor, items: Tensor, num_candidates: int, generator: torch.Generator | None, tiling: Tiling = TILING
) -> Scanned:
    """Draw candidates as `esr_trainer.policy.sample_candidates` does, or the greedy ones; from noise of Philox.

    Args:
        queries: (B, M, D) float32, divided by the temperature.
        items: (N, M, D) float32.
        num_candidates: K, at most N.
        generator: one seed is drawn from it, on the queries' device; None for the greedy candidates.
        tiling: how to go.
    """
    queries, items = queries.detach().contiguous(), items.detach().contiguous()
    (num_contexts, num_experts, dimension), num_items = queries.shape, len(items)
    walk = walk_of(num_items, tiling)
    seed = queries.new_zeros(1, dtype=torch.int64)
    if generator is not None:
        seed.random_(generator=generator)
    best = queries.new_empty((num_contexts, num_experts, walk.num_tiles))
    sums = queries.new_empty((num_contexts, num_experts, walk.num_chunks, 3))
    of_tile = {"M": num_experts, "D": dimension, "TILE": tiling.tile, "PART": tiling.part, "num_warps": WARPS}
    kernels.scan[blocks(num_contexts, tiling), walk.num_chunks, num_experts](
        queries, items, seed, best, sums, num_contexts, num_items, walk.num_tiles, walk.in_chunk,
        ROWS=tiling.rows, NOISY=generator is not None, **of_tile,
    )  # fmt: skip
    tiles = best.topk(min(num_candidates, walk.num_tiles)).indices  # (B, M, G)
    keys = queries.new_empty((*tiles.shape, tiling.tile))
    kernels.look[-(-num_contexts // tiling.few), tiles.shape[2], num_experts](
        queries, items, seed, tiles, keys, num_contexts, num_items,
        FEW=tiling.few, NOISY=generator is not None, **of_tile,
    )  # fmt: skip
    keys, place = keys.flatten(2).topk(num_candidates)
    of_place = tiles.gather(2, place // tiling.tile) * tiling.tile + place % tiling.tile
    return Scanned(in_turn(keys, of_place, num_candidates), *softmax_sums(sums))


class Walk(NamedTuple):
    """How many tiles there are, and how they are shared out."""

    num_tiles: int
    num_chunks: int
    in_chunk: int


def walk_of(num_items: int, tiling: Tiling) -> Walk:
    """Chunks of as many tiles each; the last has fewer, none has none."""
    num_tiles = -(-num_items // tiling.tile)
    in_chunk = -(-num_tiles // tiling.chunks)
    return Walk(num_tiles, -(-num_tiles // in_chunk), in_chunk)


def blocks(num_contexts: int, tiling: Tiling) -> int:
    """Blocks of contexts."""
    return -(-num_contexts // tiling.rows)


def softmax_sums(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What chunks found (B, M, C, 3) as one: the largest logit, the log-normaliser and the entropy, (B, M) each."""
    own, total, led = sums.double().unbind(3)
    largest = own.amax(dim=2)
    lead = own - largest[:, :, None]
    share = lead.exp()
    whole = (share * total).sum(dim=2)
    mean = (share * (led + total * lead)).sum(dim=2) / whole
    found = largest, largest + whole.log(), whole.log() - mean
    return found[0].float(), found[1].float(), found[2].float()


def summed(queries: Tensor, items: Tensor, scanned: Scanned, with_times: bool, tiling: Tiling = TILING) -> SummedLogits:
    """What the estimators ask of the catalogue, with its gradient; the columns are the candidates.

    Args:
        queries: (B, M, D) float32, divided by the temperature.
        items: (N, M, D) float32.
        scanned: what `draw` found.
        with_times: whether the stopping times are asked for.
        tiling: how to go.
    """
    num_candidates = scanned.candidates.shape[1]
    sizes = [quota for quota in quotas(num_candidates, queries.shape[1]) if quota] if with_times else []
    found: tuple[Tensor, ...] = _Summed.apply(queries, items, scanned, sizes, tiling)  # type: ignore[no-untyped-call]
    picked, log_normaliser, entropy, times, is_solved = found
    if not is_solved.all():
        rows = torch.split((~is_solved).nonzero()[:, 0], FEW)
        held = [
            checkpoint(times_of, queries[few], items, num_candidates, use_reentrant=False, preserve_rng_state=False)
            for few in rows
        ]
        times = times.index_copy(0, torch.cat(rows), torch.cat(held))
    return SummedLogits(len(items), picked, log_normaliser, entropy, times)


def times_of(queries: Tensor, items: Tensor, num_candidates: int) -> Tensor:
    """`esr_trainer.inclusion.log_stopping_times` of a few contexts, whose logits are made: (F, M, D) -> (F, R)."""
    return log_stopping_times(torch.einsum("bmd,nmd->bmn", queries, items), num_candidates)


class Races(NamedTuple):
    """Races that are run."""

    log_times: Tensor
    """log tau, (B, R) float64."""
    is_solved: Tensor
    """(B,)."""
    system: Tensor
    """sum_a e^-Z_m z_n at m, n <= m: (B, R, R) float64; the identity where it is not solved."""


def run_races(queries: Tensor, items: Tensor, largest: Tensor, sizes: Sequence[int], tiling: Tiling) -> Races:
    """The stopping times, as `esr_trainer.inclusion` finds them, from sums of the kernel `race`."""
    times = largest.new_full((len(largest), len(sizes)), NOT_HERE, dtype=torch.float64)
    is_solved = torch.ones_like(largest[:, 0], dtype=torch.bool)
    for expert, size in enumerate(sizes):
        sums = partial(race_sums, queries, items, times, expert, tiling)
        early = EARLY - largest[:, expert].double()
        _, slope, curve = sums(early)
        times[:, expert], is_sound = halley(sums, early + first_guess(slope, curve, size), size)
        is_solved &= is_sound
    times.masked_fill_(~is_solved[:, None], NOT_HERE)
    system = torch.eye(len(sizes), dtype=torch.float64, device=times.device).repeat(len(times), 1, 1)
    pairs = torch.tril_indices(len(sizes), len(sizes), device=times.device)
    slopes = sums_of_pairs(queries, items, times, pairs.T, tiling)[..., 1]  # (P, B)
    system[:, pairs[0], pairs[1]] = slopes.T.where(is_solved[:, None], system[:, pairs[0], pairs[1]])
    return Races(times, is_solved, system)


def race_sums(
    queries: Tensor, items: Tensor, times: Tensor, expert: int, tiling: Tiling, log_time: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Arrivals of one expert's race, slope and curve, if it stopped at a time: (B,) -> (B,) each."""
    times[:, expert] = log_time
    pair = torch.full((1, 2), expert, device=times.device)
    arrived, slope, curve = sums_of_pairs(queries, items, times, pair, tiling)[0].unbind(dim=1)
    return arrived, slope, curve


def sums_of_pairs(queries: Tensor, items: Tensor, times: Tensor, pairs: Tensor, tiling: Tiling) -> Tensor:
    """The sums of the kernel `race`: times (B, R), pairs (P, 2) -> (P, B, 3) float64."""
    num_contexts, num_experts, dimension = queries.shape
    walk = walk_of(len(items), tiling)
    sums = queries.new_empty((len(pairs), num_contexts, walk.num_chunks, 3))
    if len(pairs):
        kernels.race[blocks(num_contexts, tiling), walk.num_chunks, len(pairs)](
            queries, items, times.float(), pairs.int().contiguous(), sums, num_contexts, len(items), walk.num_tiles,
            walk.in_chunk, M=num_experts, D=dimension, R=times.shape[1], ROWS=tiling.rows, TILE=tiling.tile,
            PART=tiling.part, num_warps=WARPS,
        )  # fmt: skip
    return sums.double().sum(dim=2)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, items: Tensor, scanned: Scanned, sizes: Sequence[int], tiling: Tiling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        queries, items = queries.contiguous(), items.contiguous()
        picked = torch.einsum("bmd,bjmd->bmj", queries, items[scanned.candidates])
        races = run_races(queries, items, scanned.largest, sizes, tiling)
        ctx.tiling = tiling
        ctx.save_for_backward(queries, items, *scanned, *races)
        ctx.mark_non_differentiable(races.is_solved)
        return picked, scanned.log_normaliser.clone(), scanned.entropy.clone(), races.log_times.clone(), races.is_solved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, items, candidates, _, log_normaliser, entropy, log_times, _, system = ctx.saved_tensors
        of_picked, of_normaliser, of_entropy, of_times, _ = gradients
        # as in `esr_trainer.inclusion`: one triangular system per context, transposed
        weight = torch.linalg.solve_triangular(system.mT, -of_times[:, :, None], upper=True)[:, :, 0]
        of_softmax = torch.stack([of_normaliser - of_entropy * entropy, -of_entropy, log_normaliser], dim=2)
        given = (queries, items, log_times.float(), weight.float(), of_softmax)
        of_queries, of_items = pulled(*given, ctx.tiling.of_gradient(queries.shape[2]))
        of_queries += torch.einsum("bmj,bjmd->bmd", of_picked, items[candidates])
        sparse = torch.einsum("bmj,bmd->bjmd", of_picked, queries)
        of_items.index_add_(0, candidates.flatten(), sparse.flatten(0, 1))
        return of_queries, of_items, None, None, None


def pulled(
    queries: Tensor, items: Tensor, log_times: Tensor, of_races: Tensor, of_softmax: Tensor, tiling: Tiling
) -> tuple[Tensor, Tensor]:
    """What the kernels `pull_queries` and `pull_items` find: (B, M, D) and (N, M, D)."""
    num_contexts, num_experts, dimension = queries.shape
    walk = walk_of(len(items), tiling)
    given = (queries, items, log_times, of_races, of_softmax)
    wide = max(16, 1 << (dimension - 1).bit_length())
    shape = {"M": num_experts, "D": dimension, "R": log_times.shape[1], "WIDE": wide}
    shape |= {"ROWS": tiling.rows, "TILE": tiling.tile, "PART": tiling.part, "num_warps": WARPS}
    of_chunks = queries.new_empty((walk.num_chunks, *queries.shape))
    kernels.pull_queries[blocks(num_contexts, tiling), walk.num_chunks, num_experts](
        *given, of_chunks, num_contexts, len(items), walk.num_tiles, walk.in_chunk, **shape
    )
    of_items = torch.empty_like(items)
    kernels.pull_items[walk.num_tiles, num_experts](*given, of_items, num_contexts, len(items), **shape)
    return of_chunks.sum(dim=0), of_items
