"""What `test_sampled_sharded_training` runs under torchrun: runs, then samples of a shared catalogue against all."""

import json
import sys

import torch
from torch import Tensor

from esr_trainer.__main__ import command_line
from esr_trainer.catalogue_sample import Head, head_of, lazy_races
from esr_trainer.catalogue_shard import CatalogueShard
from esr_trainer.config import TrainConfig
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.normalisers import entropy
from esr_trainer.policy import greedy_candidates, sample_candidates
from esr_trainer.ranks import Ranks, joined
from esr_trainer.sampled_sharded_training import (
    SampledShardedTrainer,
    Sizes,
    best_shared,
    own_generator,
    shared_columns,
    sizes_of,
)
from esr_trainer.sharded_training import new_sharded_trainer
from esr_trainer.shards import Logits, ShardedLogits
from esr_trainer.synthetic import synthetic_world
from esr_trainer.system import system_of
from tests.esr_trainer.shard_checks import SHAPES
from tests.esr_trainer.test_catalogue_sample import NO_TAIL, Dense, chi_square, seeded, stale_world

NAMES = ("top1", "ca-swr", "v", "v-swr", "ca", "ca-poisson", "entropy")


def head_here(head: Head, shard: CatalogueShard) -> Head:
    """What of a head is here, by its place."""
    is_here, places = shard.place(head.items)
    return head_of(places.where(is_here & head.is_there, -1))


def columns_here(
    here: Tensor, head: Head, candidates: Tensor, sizes: Sizes, shard: CatalogueShard, seed: int
) -> tuple[ShardedLogits, Tensor, Tensor]:
    """Logits of the columns that stand for the items here, (B, M, H), their weights, and the candidates' columns."""
    draws = seeded(seed + shard.ranks.index)
    columns, shards, of_candidates = shared_columns(head, candidates, sizes, shard, draws)
    logits = torch.cat([Dense(here).own(columns.own), here[:, :, columns.tail]], dim=2)
    return ShardedLogits(logits, shards), columns.log_weight, of_candidates


def difference(name: str, shape: tuple[int, int, int], scale: float, ranks: Ranks) -> float:
    """The largest error of value and gradient where every item is in the tail, so that each column is one item."""
    generator, shard = seeded(3), CatalogueShard(shape[2], ranks)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    candidates = sample_candidates(logits, 10, generator)
    weight = torch.rand((shape[0], 3), generator=generator, dtype=torch.float64)

    def value_of(logits: Logits, candidates: Tensor, log_weight: Tensor | None = None) -> Tensor:
        if name == "entropy":
            return entropy(logits, log_weight)[:, :1] * weight
        return ESTIMATORS[name](logits, candidates[:, [4, 0, 9]], candidates, log_weight) * weight

    whole = logits.clone().requires_grad_()
    expected = value_of(whole, candidates)
    expected.sum().backward()
    here = shard.own(logits).clone().requires_grad_()
    head = head_of(here.detach()[:, 0].topk(4).indices)
    sizes = Sizes([4] * ranks.count, list(shard.widths))
    columns, log_weight, of_candidates = columns_here(here, head, candidates, sizes, shard, 5)
    found = value_of(columns, of_candidates, log_weight)
    found.sum().backward()
    assert whole.grad is not None
    assert here.grad is not None
    of_gradient = (here.grad - shard.own(whole.grad)).abs().max() / whole.grad.abs().max()
    return float(ranks.max(torch.maximum((found - expected).detach().abs().max(), of_gradient)))


def fit(num_experts: int, ranks: Ranks, count: int, share_of_last: float) -> float:
    """The p-value of candidates against their law, where the last process has another share of early items."""
    logits, head = stale_world(12, num_experts, stale=1.0, size=3 // num_experts, spread=0.3)
    shard, shared = CatalogueShard(12, ranks), seeded(11)
    here, own = Dense(shard.own(logits)), head_here(head, shard)
    share = share_of_last if ranks.index == ranks.count - 1 else 0.97
    races = [lazy_races(here, own, shard.num_here, 2, share, own_generator(shared, ranks)) for _ in range(count)]
    keys, places = map(torch.cat, zip(*races, strict=True))
    return chi_square(logits, shard.first_of_all(keys, places, 2).view(count, len(logits), 2))


def bias(ranks: Ranks) -> list[float]:
    """How far the mean of normalisers over 600 tails is from the exact ones, in standard errors."""
    logits, head = stale_world(401, 2, stale=0.7, size=12)
    shard, candidates = CatalogueShard(401, ranks), sample_candidates(logits, 10, seeded(7))
    own, here, parts = head_here(head, shard), shard.own(logits).double(), []
    sizes = sizes_of(own.items.shape[1] * ranks.count, 60, shard)
    for seed in range(600):
        columns, log_weight, _ = columns_here(here, own, candidates, sizes, shard, 10 * seed)
        parts.append((columns.here + log_weight[:, None]).exp().sum(dim=2))
    share = ranks.sum(torch.stack(parts)) / logits.double().exp().sum(dim=2)
    return ((share.mean(dim=0) - 1) / (share.std(dim=0) / 600**0.5)).flatten().tolist()


def trainer_of(ranks: Ranks, **options: object) -> SampledShardedTrainer:
    given = {"environment": "synthetic", "candidates": 5, "experts": 2, "batch": 3, "catalogue": "sampled"}
    config = TrainConfig.model_validate({**given, "catalogue_head": 8, "catalogue_tail": 20, **options})
    world = synthetic_world(30, 301)
    system = system_of(config, world)
    trainer = new_sharded_trainer(config, world, system, "row-wise", ranks, SampledShardedTrainer)
    assert isinstance(trainer, SampledShardedTrainer)
    return trainer


def touched(ranks: Ranks) -> dict[str, list[int]]:
    """Rows with a gradient and rows that moved in one step, over all processes, by table."""
    trainer, found = trainer_of(ranks), {}
    before = {name: table.detach().clone() for name, table in trainer.policy.named_parameters()}
    trainer.advance()
    for name, table in trainer.policy.named_parameters():
        assert table.grad is not None
        rows = table.grad.coalesce().indices()[0]
        moved = (table != before[name]).any(dim=1)
        assert moved[rows].all()
        found[name.partition("_")[0]] = ranks.sum(torch.tensor([len(rows), int(moved.sum())])).tolist()
    return found


def greedy_is_that_of_all(num_experts: int, ranks: Ranks) -> bool:
    """Whether the policy that is valued is the one of the whole catalogue's logits."""
    trainer, contexts = trainer_of(ranks, experts=num_experts, init_std=1.0), torch.arange(30)
    with torch.no_grad():
        expected = greedy_candidates(trainer.policy(contexts), 5)
    return best_shared(trainer.policy, contexts, trainer.system).equal(expected)


def main() -> None:
    """Make runs, each by a JSON list of arguments, then check; print one JSON object."""
    with joined("cpu") as ranks:
        for arguments in sys.argv[1:]:
            assert command_line(json.loads(arguments)) == 0
        found = {
            "errors": {
                f"{name} {kind} {scale}": difference(name, shape, scale, ranks)
                for name in NAMES
                for kind, shape in SHAPES.items()
                for scale in (1.0, 20.0)
            },
            "fits": [fit(experts, ranks, 1000, 0.97) for experts in (1, 2)],
            "without a tail": [fit(experts, ranks, 300, NO_TAIL) for experts in (1, 2)],
            "bias": bias(ranks),
            "touched": touched(ranks),
            "greedy": [greedy_is_that_of_all(experts, ranks) for experts in (1, 2)],
        }
        if ranks.is_first:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
