"""Users of a world who visit a live server: they are shown what it draws, and what they do goes into its feedback log.

Axes: B batch, C contexts, K candidates, L slots.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc
import torch
from torch import Tensor

from esr_trainer.interaction import show
from esr_trainer.policy_value import System, replay
from esr_trainer.world import World
from serving.wire import retrieval_pb2, retrieval_pb2_grpc

BATCH = 64
"""Contexts of one BatchRetrieve."""

SECONDS = 60.0
"""Deadline of a call."""


class Visits(NamedTuple):
    """What some visits brought."""

    num_visits: int
    mean_reward: float
    """Weighted reward per visit, summed over the slots."""


class SimulatedUsers:
    """The users of a world, in front of a server that knows them by their ids.

    The late-stage ranker is theirs too: a service between the retriever and the user, which sends back the slate with
    the probability of each slot's item.
    """

    def __init__(self, world: World, system: System, address: str, seed: int) -> None:
        """Users who call the server at `host:port`; the seed decides who comes, what is drawn, and what they like."""
        self.world, self.system = world, system
        self.channel = grpc.insecure_channel(address)
        self.stub = retrieval_pb2_grpc.RetrievalServiceStub(self.channel)
        self.generator = torch.Generator().manual_seed(seed)
        self.row = {item_id: row for row, item_id in enumerate(world.item_ids)}
        self.name = f"{seed}-{address}"
        self.visits = 0

    def visit(self, num_visits: int) -> Visits:
        """Users come one after the other, uniformly at random: what they are shown is drawn, and recorded."""
        total = 0.0
        for start in range(0, num_visits, BATCH):
            count = min(BATCH, num_visits - start)
            total += self.visit_together(torch.randint(self.world.num_contexts, (count,), generator=self.generator))
        return Visits(num_visits, total / num_visits)

    def visit_together(self, contexts: Tensor) -> float:
        """One BatchRetrieve and a RecordFeedback for each of its contexts, (B,); the sum of their weighted rewards."""
        seeds = torch.randint(1 << 62, contexts.shape, generator=self.generator).tolist()
        shown = self.retrieve(
            [
                retrieval_pb2.RetrieveRequest(
                    context_id=self.world.context_ids[context],
                    num_candidates=self.system.num_candidates,
                    sampling=retrieval_pb2.Sampling(seed=seed),
                    request_id=f"{self.name}-{self.visits + number}",
                )
                for number, (context, seed) in enumerate(zip(contexts.tolist(), seeds, strict=True))
            ]
        )
        self.visits += len(shown)
        round_ = show(self.world, self.system, contexts, self.rows_of(shown), self.generator)
        scores = self.system.scores(contexts, round_.candidates)
        of_all = self.system.ranker.propensities(scores, round_.positions)
        propensities = of_all.gather(2, round_.positions[:, :, None]).squeeze(2).double().clamp(max=1.0)
        calls = [
            self.stub.RecordFeedback.future(
                retrieval_pb2.RecordFeedbackRequest(
                    shown=response, slate=slate, slate_probabilities=probabilities, rewards=rewards
                ),
                timeout=SECONDS,
            )
            for response, slate, probabilities, rewards in zip(
                shown, round_.positions.tolist(), propensities.tolist(), round_.reward.tolist(), strict=True
            )
        ]
        for call in calls:
            call.result()
        return float((round_.reward @ self.system.slot_weights).sum())

    def policy_value(self) -> float:
        """The expected weighted reward of the greedy candidates that the server answers, mean over all contexts."""

        def choose(contexts: Tensor) -> Tensor:
            requests = [
                retrieval_pb2.RetrieveRequest(
                    context_id=self.world.context_ids[context], num_candidates=self.system.num_candidates
                )
                for context in contexts.tolist()
            ]
            batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
            return self.rows_of([response for batch in batches for response in self.retrieve(batch)])

        return float(replay(self.world, self.system, choose).mean())

    def retrieve(self, requests: Sequence[Any]) -> list[Any]:
        """The response to each request.

        Raises:
            RuntimeError: one of them was refused.
        """
        answer = self.stub.BatchRetrieve(retrieval_pb2.BatchRetrieveRequest(requests=requests), timeout=SECONDS)
        for result in answer.results:
            if result.HasField("error"):
                raise RuntimeError(f"the server refused a visit: {result.error.message}")
        return [result.response for result in answer.results]

    def rows_of(self, responses: Sequence[Any]) -> Tensor:
        """Their items as rows of the world, (B, K)."""
        return torch.tensor([[self.row[item_id] for item_id in response.item_ids] for response in responses])

    def model_version(self) -> int:
        """The version that answers now."""
        return int(self.stub.GetModel(retrieval_pb2.GetModelRequest(), timeout=SECONDS).model_version)

    def close(self) -> None:
        """Leave."""
        self.channel.close()
