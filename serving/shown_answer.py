"""An answer as `retrieve --json` prints it and `record` reads it: what must come back with the rewards, and no more."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Unsigned = Annotated[int, Field(ge=0, lt=1 << 32)]
Version = Annotated[int, Field(ge=0, lt=1 << 64)]


class ShownAnswer(BaseModel):
    """A RetrieveResponse in JSON; see the proto for the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model_id: str
    model_version: Version
    request_id: str
    context_id: str
    mode: Literal["greedy", "sampled"]
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    experts: tuple[Unsigned, ...]
    inclusion_propensities: tuple[float, ...]
    log_probability: float
    slate: tuple[Unsigned, ...]
    slate_probabilities: tuple[float, ...]

    @classmethod
    def of(cls, response: Any) -> Self:
        """The same as a RetrieveResponse."""
        from serving.wire import retrieval_pb2

        mode = "sampled" if response.mode == retrieval_pb2.MODE_SAMPLED else "greedy"
        return cls(mode=mode, **{name: getattr(response, name) for name in cls.model_fields if name != "mode"})

    def response(self) -> Any:
        """The RetrieveResponse."""
        from serving.wire import retrieval_pb2

        mode = retrieval_pb2.MODE_SAMPLED if self.mode == "sampled" else retrieval_pb2.MODE_GREEDY
        return retrieval_pb2.RetrieveResponse(**(self.model_dump() | {"mode": mode}))

    def feedback(self, rewards: Mapping[str, float]) -> Any:
        """The RecordFeedbackRequest: the slate was shown, or all candidates in their order where there is none.

        Args:
            rewards: by item; a shown one that is left out earned 0.
        """
        from serving.wire import retrieval_pb2

        shown = self.shown_items()
        request = retrieval_pb2.RecordFeedbackRequest(
            shown=self.response(), rewards=[rewards.get(item, 0.0) for item in shown]
        )
        if not self.slate:  # nothing was left to chance
            request.slate.extend(range(len(shown)))
            request.slate_probabilities.extend([1.0] * len(shown))
        return request

    def shown_items(self) -> list[str]:
        """The items of the slots."""
        return [self.item_ids[position] for position in self.slate or range(len(self.item_ids))]
