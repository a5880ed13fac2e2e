"""PROXIES: what an ESR is usually trained on instead of the system's reward, on the same number of interactions.

Axes: B batch, N items, L slots, J negatives. One expert.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from esr_trainer.config import TrainConfig
from esr_trainer.interaction import Round, interact
from esr_trainer.learner import descend
from esr_trainer.policy_value import replay_list
from esr_trainer.training import Trainer, losses_of, play
from offline_eval.reproduce.curves import Curve, learn, new_run, references_of

NEGATIVES = 100
"""Uniform negatives of the sampled softmax."""

PRIOR_SHOWINGS = 10
"""Impressions at the mean reward that an item's popularity starts with."""

Loss = Callable[[Tensor, Round, torch.Generator], Tensor]
"""(logits (B, 1, N), round, generator) -> loss per impression, (B, L)."""


def regression(logits: Tensor, round_: Round, generator: torch.Generator) -> Tensor:
    """Two-tower regression: (f(x, a) - (r - mean r))^2 of what was shown; the mean is the batch's."""
    return (shown(logits, round_) - (round_.reward - round_.reward.mean())).square()


def sampled_softmax(logits: Tensor, round_: Round, generator: torch.Generator) -> Tensor:
    """Softmax of the positives, those rewarded above the batch's median, against NEGATIVES uniform items.

    -log( e^f(a) / (e^f(a) + ((N - 1) / J) sum_j e^f(j)) ), whose mean over the draws tends to the full softmax.
    """
    num_items = logits.shape[2]
    negatives = torch.randint(num_items, (len(logits), NEGATIVES), generator=generator)
    rest = logits[:, 0].gather(1, negatives).logsumexp(dim=1, keepdim=True)
    rest = rest + torch.tensor((num_items - 1) / NEGATIVES).log()
    item = shown(logits, round_)
    return (torch.logaddexp(item, rest) - item) * (round_.reward > round_.reward.median())


def shown(logits: Tensor, round_: Round) -> Tensor:
    """The logits of the slate's items, (B, L)."""
    return logits[:, 0].gather(1, round_.slate)


PROXIES: Mapping[str, Loss] = {"regression": regression, "sampled softmax": sampled_softmax}
"""Name -> loss."""

Interactions = Callable[[Trainer, TrainConfig], Callable[[], tuple[Tensor, Round]]]
"""(proxy, settings) -> the next batch of contexts, (B,), and what happened in them."""


def own(proxy: Trainer, config: TrainConfig) -> Callable[[], tuple[Tensor, Round]]:
    """The proxy's policy explores for itself."""

    def following() -> tuple[Tensor, Round]:
        played = play([proxy])
        return played.contexts, played.round_

    return following


def uniform(proxy: Trainer, config: TrainConfig) -> Callable[[], tuple[Tensor, Round]]:
    """Candidates are drawn uniformly; the LSR picks from them."""

    def following() -> tuple[Tensor, Round]:
        contexts = proxy.draw_contexts()
        logits = torch.zeros(len(contexts), 1, proxy.world.num_items)
        return contexts, interact(proxy.world, proxy.system, contexts, logits, proxy.generator)

    return following


def of_the_run(proxy: Trainer, config: TrainConfig) -> Callable[[], tuple[Tensor, Round]]:
    """The very interactions of a policy-gradient run with these settings, which learns as it goes."""
    run = new_run(config)

    def following() -> tuple[Tensor, Round]:
        played = play([run])
        descend([run], run.optimizer, losses_of([run], played), played.logits)
        return played.contexts, played.round_

    return following


INTERACTIONS: Mapping[str, Interactions] = {"own": own, "uniform": uniform, "the run's": of_the_run}
"""Where a proxy's interactions come from."""


def learn_loss(loss: Loss, interactions: Interactions, config: TrainConfig) -> Curve:
    """Train the settings' ESR on a proxy's loss; their estimator is the run's whose interactions it may follow."""
    proxy = new_run(config)
    following = interactions(proxy, config)

    def advance() -> None:
        contexts, round_ = following()
        logits = proxy.policy(contexts)
        descend([proxy], proxy.optimizer, loss(logits, round_, proxy.generator).mean()[None], logits)

    return learn(proxy, advance, references_of(proxy))


def learn_popularity(interactions: Interactions, config: TrainConfig) -> Curve:
    """One list for everybody: the K items of the highest mean reward so far, shrunk to the overall mean."""
    proxy = new_run(config)
    following = interactions(proxy, config)
    total, impressions = torch.zeros(proxy.world.num_items), torch.zeros(proxy.world.num_items)

    def advance() -> None:
        _, round_ = following()
        total.index_add_(0, round_.slate.flatten(), round_.reward.flatten())
        impressions.index_add_(0, round_.slate.flatten(), torch.ones(round_.slate.numel()))
        proxy.step += 1

    def value(proxy: Trainer) -> float:
        mean = total.sum() / impressions.sum().clamp(min=1)
        popularity = (total + PRIOR_SHOWINGS * mean) / (impressions + PRIOR_SHOWINGS)
        popular = popularity.topk(proxy.system.num_candidates).indices
        return float(replay_list(proxy.world, proxy.system, popular).mean())

    return learn(proxy, advance, references_of(proxy), value)


LEARNERS: Mapping[str, Callable[[TrainConfig], Curve]] = {
    f"{name}, {source} interactions": partial(learn_loss, loss, interactions)
    for name, loss in PROXIES.items()
    for source, interactions in INTERACTIONS.items()
} | {
    f"popularity, {source} interactions": partial(learn_popularity, INTERACTIONS[source])
    for source in ("uniform", "the run's")
}
"""Name -> settings -> curve."""
