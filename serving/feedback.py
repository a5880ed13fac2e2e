"""Recording feedback: from RecordFeedback's message to the feedback log, with one commit for all that has queued up.

The message holds what was shown, so nothing is looked up; while one commit is made durable, further feedback queues
up for the next.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from esr_trainer.feedback_log import (
    Feedback,
    FeedbackLog,
    FeedbackLogUnavailableError,
    FeedbackLogUnusableError,
    FeedbackRefusedError,
    Outcome,
    Shown,
    check,
)
from serving.current_call import Stage, stages_of_call
from serving.errors import AlreadyRecordedError, InvalidRequestError, NotServingError, OverloadedError
from serving.grouping_thread import GroupingThread
from serving.metrics import REJECTED, STAGE_SECONDS
from serving.wire import retrieval_pb2

GROUP = 256
"""Most records of a commit."""
MAX_WAITING = 4096
"""Most records that wait for a commit; further ones are turned away."""
RETRY_SECONDS = 0.5
"""After how long a rejected caller may try again."""

_feedback_seconds = STAGE_SECONDS.labels("feedback")
_overloaded = REJECTED.labels("feedback-overloaded")


class FeedbackRecorder:
    """Writes feedback on a thread of its own, so that a slow database holds up nobody else."""

    def __init__(self, log: FeedbackLog) -> None:
        self._log = log
        self._waiting = 0
        self._thread: GroupingThread[Feedback, Outcome] = GroupingThread("feedback", self._record, lambda first: GROUP)

    async def record(self, feedback: Feedback) -> bool:
        """Write one record; when this returns it is durable.

        Returns:
            Whether it is new.

        Raises:
            AlreadyRecordedError: other feedback was recorded for the request id.
            NotServingError: the log cannot be written now.
            OverloadedError: too many records wait already.
        """
        if self._waiting >= MAX_WAITING:
            _overloaded.inc()
            raise OverloadedError(f"{self._waiting} records wait for the feedback log", RETRY_SECONDS)
        self._waiting += 1
        start, stages = time.monotonic(), stages_of_call()
        submitted = self._thread.submit(feedback)
        submitted.add_done_callback(self._leave)
        # not cancelled with its caller: it may be in the middle of a commit, and is worth keeping
        outcome = await asyncio.shield(submitted)
        if stages is not None:
            stages.append(Stage("feedback", start, time.monotonic(), 1))
        if outcome is Outcome.CONFLICT:
            raise AlreadyRecordedError(f"request_id ({feedback.shown.request_id}): other feedback was recorded for it")
        return outcome is Outcome.NEW

    def _leave(self, submitted: asyncio.Future[Outcome]) -> None:
        self._waiting -= 1
        if not submitted.cancelled():
            submitted.exception()  # seen, even if the caller has gone

    def _record(self, group: Sequence[Feedback]) -> Sequence[Outcome | Exception]:
        start = time.monotonic()
        try:
            return self._log.record(group)
        except (FeedbackLogUnavailableError, FeedbackLogUnusableError) as error:
            return [NotServingError(str(error))] * len(group)
        finally:
            _feedback_seconds.observe(time.monotonic() - start)

    def close(self) -> None:
        """Write what waits, then let go of the log."""
        self._thread.close()
        self._log.close()


def feedback_of(request: Any) -> Feedback:
    """The record of a RecordFeedbackRequest.

    Raises:
        InvalidRequestError: a field breaks its rule.
    """
    shown = request.shown
    positions = request.slate or shown.slate
    own = request.slate_probabilities if request.slate or request.slate_probabilities else shown.slate_probabilities
    if shown.mode not in (retrieval_pb2.MODE_GREEDY, retrieval_pb2.MODE_SAMPLED):
        raise InvalidRequestError("shown.mode", f"({shown.mode}) must be greedy or sampled, as it came")
    if beyond := [position for position in positions if position >= len(shown.item_ids)]:
        raise InvalidRequestError("slate", f"({beyond[0]}) must be below the {len(shown.item_ids)} items shown")
    is_drawn = shown.mode == retrieval_pb2.MODE_SAMPLED
    feedback = Feedback(
        shown=Shown(
            request_id=shown.request_id,
            model_id=shown.model_id,
            model_version=shown.model_version,
            mode="sampled" if is_drawn else "greedy",
            context_id=shown.context_id,
            candidates=tuple(shown.item_ids),
            inclusion_propensities=tuple(shown.inclusion_propensities),
            log_probability=shown.log_probability if is_drawn else None,
            experts=tuple(shown.experts),
        ),
        slate=tuple(shown.item_ids[position] for position in positions),
        lsr_probabilities=tuple(own),
        rewards=tuple(request.rewards),
        time=datetime.now(UTC),
    )
    try:
        check(feedback)
    except FeedbackRefusedError as error:
        raise InvalidRequestError(error.field, error.rule) from error
    return feedback
