"""What `test_catalogue_shard` runs under torchrun: every reduction against the catalogue in one piece, in float64."""

import json
import sys

import torch
from torch import Tensor

from esr_trainer.catalogue_shard import CatalogueShard
from esr_trainer.config import TrainConfig
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.normalisers import entropy
from esr_trainer.policy import greedy_candidates, sample_candidates
from esr_trainer.ranks import Ranks, joined
from esr_trainer.sharded_training import new_sharded_trainer
from esr_trainer.shards import Logits, ShardedCatalogue, ShardedLogits
from esr_trainer.synthetic import synthetic_world
from esr_trainer.system import system_of

SHAPES = {"mixture": (7, 3, 41), "one": (7, 1, 600)}
"""(B, M, N)."""


def normal(*shape: int, scale: float) -> Tensor:
    """Logits, (B, M, N), that are the same everywhere."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def difference(name: str, logits: Tensor, num_candidates: int, ranks: Ranks, num_slots: int = 4) -> float:
    """The largest error of an estimator's value and of its gradient, relative to the largest gradient."""
    generator, num_items = torch.Generator().manual_seed(4), logits.shape[2]
    candidates = sample_candidates(logits, num_candidates, generator)
    shown = torch.randint(num_items, (len(logits), 2), generator=generator)
    slate = torch.cat([candidates[:, [1, 0]], shown], dim=1)[:, -num_slots:]  # whether it was drawn or not
    weight = torch.rand(slate.shape, generator=generator, dtype=torch.float64)
    shard = CatalogueShard(num_items, ranks)

    def value_of(logits: Logits) -> Tensor:
        if name == "entropy":
            return entropy(logits)[:, :1] * weight
        return ESTIMATORS[name](logits, slate, candidates) * weight

    whole = logits.clone().requires_grad_()
    expected = value_of(whole)
    expected.sum().backward()
    here = shard.own(logits).clone().requires_grad_()
    found = value_of(ShardedLogits(here, shard))
    found.sum().backward()
    assert whole.grad is not None
    assert here.grad is not None
    of_gradient = (here.grad - shard.own(whole.grad)).abs().max() / whole.grad.abs().max().clamp(min=1e-300)
    return float(ranks.max(torch.maximum((found - expected).detach().abs().max(), of_gradient)))


def of_the_greedy(ranks: Ranks) -> dict[str, float]:
    """Errors of `ca`: quotas that differ, one item that is left and none, logits that differ and are often equal."""
    return {
        f"M={experts} L={slots} K={num_candidates} {kind}": difference("ca", logits, num_candidates, ranks, slots)
        for experts in (1, 2, 5)
        for kind, logits in (
            ("differ", normal(7, experts, 29, scale=2.0)),
            ("equal", normal(7, experts, 29, scale=1.0).round()),
        )
        for slots in (1, 3)
        for num_candidates in (7, 28, 29)
    }


def of_heads(ranks: Ranks) -> dict[str, float]:
    """Errors of `ca-heads`: heads alone, logits that are too far apart, quotas that differ, one that is too large."""
    logits = {experts: normal(7, experts, 41, scale=3.0) for experts in (1, 2, 5)}
    logits[2][2] *= 50  # beyond what draws follow
    found = {
        f"M={experts} K={num_candidates}": difference("ca-heads", logits[experts], num_candidates, ranks)
        for experts, num_candidates in ((1, 2), (1, 4), (2, 2), (2, 5), (5, 3), (5, 12), (5, 20), (1, 5))
    }
    return {**found, "all are heads": difference("ca-heads", normal(7, 2, 6, scale=1.0), 3, ranks)}


def picks(ranks: Ranks) -> dict[str, bool]:
    """Whether greedy and drawn candidates are those of the catalogue in one piece, and whether the noise is Gumbel."""
    found = {}
    for kind, shape in SHAPES.items():
        shard = CatalogueShard(shape[2], ranks)
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        sharded = ShardedCatalogue(shard.own(logits), shard)
        for num_candidates in (10, 37):  # more than a shard holds
            same = greedy_candidates(logits, num_candidates).equal(greedy_candidates(sharded, num_candidates))
            found[f"greedy {kind} {num_candidates}"] = same
        noise = shard.whole(shard.gumbel(sharded.here, torch.Generator().manual_seed(7)))
        drawn = sample_candidates(sharded, 10, torch.Generator().manual_seed(7))
        found[f"drawn {kind}"] = greedy_candidates(logits + noise, 10).equal(drawn)
    return found


def replicas_are_equal(ranks: Ranks) -> bool:
    """Whether tables that every process has are the same bits everywhere, after steps that each took by itself."""
    config = TrainConfig(environment="synthetic", candidates=5, experts=2, batch=16)
    world = synthetic_world(20, 31)
    trainer = new_sharded_trainer(config, world, system_of(config, world), "data-parallel", ranks)
    for _ in range(5):
        trainer.advance()
    return all(other.equal(table) for table in trainer.policy.parameters() for other in ranks.gather(table.detach()))


def noise_sum(ranks: Ranks) -> float:
    """A number that is another for any other noise."""
    shard = CatalogueShard(700, ranks)
    noise = shard.gumbel(torch.zeros(3, 2, shard.last - shard.first), torch.Generator().manual_seed(11))
    return float((shard.whole(noise).double() * torch.arange(700)).sum())


def main() -> None:
    """Print one JSON object."""
    with joined("cpu") as ranks:
        errors = {
            f"{name} {kind} {scale}": difference(name, normal(*shape, scale=scale), 10, ranks)
            for name in ("top1", "ca-swr", "v", "v-swr", "ca", "ca-poisson", "entropy")
            for kind, shape in SHAPES.items()
            for scale in (1.0, 5.0, 20.0)
        }
        errors["ca-poisson all"] = difference("ca-poisson", normal(*SHAPES["mixture"], scale=1.0), 41, ranks)
        found = {
            "errors": errors,
            "of the greedy": of_the_greedy(ranks),
            "of heads": of_heads(ranks),
            "same": picks(ranks),
            "replicas": replicas_are_equal(ranks),
            "noise": noise_sum(ranks),
            "count": ranks.count,
        }
        if ranks.is_first:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
