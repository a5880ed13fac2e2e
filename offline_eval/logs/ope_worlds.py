"""Small worlds whose true values are known, ten policies in each, and any number of logs of one of them.

Axes: C contexts, N items, R rounds of all logs together, L slots, K candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from esr_trainer.drawn_inclusion import log_drawn_inclusion
from esr_trainer.environments import open_world
from esr_trainer.estimators import v
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.policy import sample_candidates
from esr_trainer.synthetic import synthetic_world
from esr_trainer.world import World
from offline_eval.logs.fitted_picks import FittedLsr, PickedSlots, fit_rounds
from offline_eval.logs.logged_rounds import LoggedRounds
from offline_eval.logs.lsr_choices import choices_of
from offline_eval.logs.target_policies import TargetPolicy, Weigher, ids_of
from offline_eval.logs.weighed_rounds import WeighedRounds

POLICIES = 10
NUM_CANDIDATES, NUM_SLOTS = 5, 2
"""K and L of the two-stage logs; L of the slates."""
TRUTH = 200_000
"""Rounds of the target policy itself that tell its value where no sum does."""
SHARPNESS = 1.0
"""Standard deviation of a policy's logits."""
MODEL_ERROR = 0.5
"""Standard deviation of the reward model's error, in those of the expected rewards."""


class Arena(NamedTuple):
    """A world, the policy that logs, and those that are judged."""

    world: World
    logging: np.ndarray
    """(C, N) logits."""
    targets: np.ndarray
    """(POLICIES, C, N) logits, better from one to the next."""
    model: np.ndarray
    """A reward model that is off, (C, N)."""


def arena_of(world: World, seed: int) -> Arena:
    """Policies between noise and the expected rewards; the one that logs is near the noise, and flat."""
    generator = np.random.default_rng(seed)
    expected = world.expected_reward.double().numpy()
    score = (expected - expected.mean()) / expected.std()
    noise = generator.normal(size=(POLICIES + 1, *score.shape))
    shares = np.linspace(0.0, 0.9, POLICIES)[:, None, None]
    targets = SHARPNESS * (shares * score + np.sqrt(1 - shares**2) * (noise[1:] + noise[:1]) / np.sqrt(2))
    logging = 0.5 * (0.3 * score + noise[0])
    model = expected + MODEL_ERROR * expected.std() * generator.normal(size=score.shape)
    return Arena(world, logging, targets, model)


def synthetic_arena() -> Arena:
    """30 contexts and 20 items of a synthetic world."""
    return arena_of(synthetic_world(num_contexts=30, num_items=20), seed=0)


def kuairec_arena(path: Path) -> Arena:
    """KuaiRec's labels 1{watch_ratio > 2} of 30 users, evenly spread, and the 20 videos with most of them."""
    world = open_world("kuairec", path, 0)
    users = torch.linspace(0, world.num_contexts - 1, 30).long()
    videos = world.expected_reward[users].mean(dim=0).topk(20).indices
    return arena_of(world.subset(users, videos), seed=0)


class LogSize(NamedTuple):
    """How much is logged."""

    logs: int
    rounds: int
    """Of each."""

    @property
    def all_rounds(self) -> int:
        """R."""
        return self.logs * self.rounds


class Logs(NamedTuple):
    """Rounds that a policy logged, one log after the other."""

    page: LoggedRounds
    contexts: np.ndarray
    """(R,) rows."""
    items: np.ndarray
    """(R, L) rows."""
    lsrs: Sequence[FittedLsr] = ()
    """Each log's LSR as fitted to it; none where that is not done."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return result


def policy_of(arena: Arena, logits: np.ndarray, name: str) -> TargetPolicy:
    """A policy of one expert with these logits, (C, N)."""
    return TargetPolicy(name, arena.world.context_ids, arena.world.item_ids, 1, lambda rows: logits[rows][:, None])


def text(rows: np.ndarray, ids: tuple[str, ...]) -> pl.Series:
    """Ids of rows, flat."""
    return pl.Series(np.array(ids, dtype=object)[rows.ravel()].tolist(), dtype=pl.String)


def draw_rewards(world: World, contexts: np.ndarray, items: np.ndarray, seed: int) -> np.ndarray:
    """What showing the items earns, (R, L)."""
    generator = torch.Generator().manual_seed(seed)
    return world.draw_rewards(torch.from_numpy(contexts), torch.from_numpy(items), generator).double().numpy()


def item_logs(arena: Arena, logits: np.ndarray, size: LogSize, seed: int) -> Logs:
    """One item a round, drawn from the softmax."""
    generator, num_rounds = np.random.default_rng(seed), size.all_rounds
    contexts = generator.integers(len(logits), size=num_rounds)
    noise = generator.gumbel(size=(num_rounds, logits.shape[1]))
    items = (logits[contexts] + noise).argmax(axis=1)[:, None]
    page = LoggedRounds(
        contexts=text(contexts, arena.world.context_ids),
        slate=text(items, arena.world.item_ids),
        rewards=draw_rewards(arena.world, contexts, items, seed),
        log_propensities=np.log(softmax(logits)[contexts[:, None], items]),
    )
    return Logs(page, contexts, items)


def two_stage_logs(arena: Arena, logits: np.ndarray, size: LogSize, seed: int, lsr: str) -> Logs:
    """K candidates drawn as a server does, of which a late-stage ranker shows L."""
    table = torch.from_numpy(logits)[:, None]  # (C, 1, N)
    contexts, candidates, slate = show(arena.world, table, size.all_rounds, seed, lsr)
    log_inclusion = log_drawn_inclusion(table, NUM_CANDIDATES)[contexts]
    log_set = v(table[contexts], slate[:, :1], candidates)[:, 0].numpy()
    rows, items = contexts.numpy(), slate.numpy()
    page = LoggedRounds(
        contexts=text(rows, arena.world.context_ids),
        slate=text(items, arena.world.item_ids),
        rewards=draw_rewards(arena.world, rows, items, seed),
        candidates=text(candidates.numpy(), arena.world.item_ids),
        inclusion=log_inclusion.gather(1, candidates).exp().numpy(),
        log_inclusion=log_inclusion.gather(1, slate).numpy(),
        log_set_probability=log_set,
    )
    return Logs(page, rows, items)


def picked_logs(arena: Arena, logits: np.ndarray, size: LogSize, seed: int, lsr: str) -> Logs:
    """The same, and to each log its LSR is fitted, as the command does."""
    logs, policy = two_stage_logs(arena, logits, size, seed, lsr), policy_of(arena, logits, "logged")
    pages = one_by_one(logs.page, size.logs)
    lsrs = [fit_rounds(choices_of(page, *ids_of(policy)), policy) for page in pages]
    return logs._replace(page=logs.page._replace(log_marginals=log_of_both_stages(policy, pages, lsrs)), lsrs=lsrs)


def one_by_one(page: LoggedRounds, logs: int) -> list[LoggedRounds]:
    """What the logs that lie behind one another in a page show of the LSR."""
    assert page.candidates is not None
    slates, candidates = (ids.reshape((len(page.contexts), -1)) for ids in (page.slate, page.candidates))
    rounds = len(page.contexts) // logs
    parts = [slice(start, start + rounds) for start in range(0, logs * rounds, rounds)]
    return [
        LoggedRounds(
            contexts=page.contexts[part],
            slate=slates[part].explode(),
            rewards=page.rewards[part],
            candidates=candidates[part].explode(),
            lsr_probabilities=None if page.lsr_probabilities is None else page.lsr_probabilities[part],
        )
        for part in parts
    ]


def log_of_both_stages(policy: TargetPolicy, pages: Sequence[LoggedRounds], lsrs: Sequence[FittedLsr]) -> np.ndarray:
    """log P(a_l in slot l | x) of a policy with each log's LSR behind it, (R, L)."""
    weigher = Weigher(policy)
    parts = [PickedSlots(weigher, lsr).log_chance(page) for page, lsr in zip(pages, lsrs, strict=True)]
    return np.concatenate(parts)


def show(world: World, table: Tensor, num_rounds: int, seed: int, lsr: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds' contexts (R,), candidates (R, K) and slates (R, L) of a policy's logits (C, 1, N)."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randint(len(table), (num_rounds,), generator=generator)
    candidates = sample_candidates(table[contexts], NUM_CANDIDATES, generator)
    positions = LATE_STAGE_RANKERS[lsr].rank(world.scores(contexts, candidates), NUM_SLOTS, generator)
    return contexts, candidates, candidates.gather(1, positions)


def slate_logs(arena: Arena, logits: np.ndarray, size: LogSize, seed: int) -> Logs:
    """L slots, filled independently of each other from one softmax: an item may come twice."""
    generator, num_rounds = np.random.default_rng(seed), size.all_rounds
    contexts = generator.integers(len(logits), size=num_rounds)
    noise = generator.gumbel(size=(num_rounds, NUM_SLOTS, logits.shape[1]))
    items = (logits[contexts][:, None] + noise).argmax(axis=2)
    page = LoggedRounds(
        contexts=text(contexts, arena.world.context_ids),
        slate=text(items, arena.world.item_ids),
        rewards=draw_rewards(arena.world, contexts, items, seed),
        log_propensities=np.log(softmax(logits)[contexts[:, None], items]),
    )
    return Logs(page, contexts, items)


def weigh_items(arena: Arena, target: np.ndarray, logs: Logs) -> WeighedRounds:
    """As the command does, with the arena's reward model."""
    rounds = Weigher(policy_of(arena, target, "target")).weigh(logs.page, "sum")
    return rounds._replace(
        predicted=arena.model[logs.contexts, logs.items[:, 0]],
        predicted_value=(softmax(target) * arena.model).sum(axis=1)[logs.contexts],
    )


def weigh_two_stage(arena: Arena, target: np.ndarray, logs: Logs) -> WeighedRounds:
    """As the command does."""
    policy = policy_of(arena, target, "target")
    rounds = Weigher(policy).weigh(logs.page, "sum")
    if logs.page.log_marginals is None:
        return rounds
    own = log_of_both_stages(policy, one_by_one(logs.page, len(logs.lsrs)), logs.lsrs)
    return rounds._replace(log_marginal_ratios=own - logs.page.log_marginals)


def weigh_slates(arena: Arena, target: np.ndarray, logs: Logs) -> WeighedRounds:
    """Both policies fill the slots independently, so what was shown above changes nothing."""
    assert logs.page.log_propensities is not None
    ratios = np.log(softmax(target)[logs.contexts[:, None], logs.items]) - logs.page.log_propensities
    return WeighedRounds(logs.page.rewards, logs.page.shown, log_ratios=ratios, log_marginal_ratios=ratios)


def exact_value(arena: Arena, target: np.ndarray, num_slots: int) -> float:
    """Of slots that are filled from the softmax: num_slots x mean sum_a pi(a | x) q(x, a)."""
    expected = arena.world.expected_reward.double().numpy()
    return num_slots * float((softmax(target) * expected).sum(axis=1).mean())


def drawn_value(arena: Arena, target: np.ndarray, lsr: str) -> float:
    """The mean expected reward of TRUTH rounds of the policy itself."""
    contexts, _, slate = show(arena.world, torch.from_numpy(target)[:, None], TRUTH, 12345, lsr)
    return float(arena.world.expected_rewards(contexts, slate).double().sum(dim=1).mean())


class Family(NamedTuple):
    """A kind of log, and what is known of it."""

    draw: Callable[[Arena, np.ndarray, LogSize, int], Logs]
    """(arena, logits, size, seed)."""
    weigh: Callable[[Arena, np.ndarray, Logs], WeighedRounds]
    value: Callable[[Arena, np.ndarray], float]


def two_stage(draw: Callable[[Arena, np.ndarray, LogSize, int, str], Logs], lsr: str) -> Family:
    """Logs of the two-stage system with this LSR."""
    return Family(
        lambda arena, logits, size, seed: draw(arena, logits, size, seed, lsr),
        weigh_two_stage,
        lambda arena, target: drawn_value(arena, target, lsr),
    )


FAMILIES: Mapping[str, Family] = {
    "items": Family(item_logs, weigh_items, lambda arena, target: exact_value(arena, target, 1)),
    "slates": Family(slate_logs, weigh_slates, lambda arena, target: exact_value(arena, target, NUM_SLOTS)),
    "two-stage, uniform LSR": two_stage(two_stage_logs, "uniform"),
    "two-stage, noisy LSR": two_stage(picked_logs, "noisy"),
    "two-stage, optimal LSR": two_stage(picked_logs, "optimal"),
}
"""Kind of log -> how it is drawn, weighed for a target, and what the target is worth."""
