"""Records for the feedback log's tests, and a process that writes them: `python -m tests.feedback_writer`."""

import sys
from datetime import UTC, datetime, timedelta

from esr_trainer.feedback_log import Feedback, FeedbackLog, Shown

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def feedback(number: int, num_candidates: int = 4) -> Feedback:
    """A record of its own; even numbers are sampled, odd ones greedy."""
    candidates = tuple(f"item-{number + position}" for position in range(num_candidates))
    sampled = number % 2 == 0
    shown = Shown(
        request_id=f"request-{number}",
        model_id="ca-poisson-0123abcd",
        model_version=1 + number % 3,
        mode="sampled" if sampled else "greedy",
        context_id=f"user-{number}" if number % 5 else "",
        candidates=candidates,
        inclusion_propensities=tuple(1 / (position + 1) for position in range(num_candidates)) if sampled else (),
        log_probability=-number / 3 if sampled else None,
        experts=tuple(position % 2 for position in range(num_candidates)),
    )
    known = (0.1, 1.0) if number % 3 else ()
    return Feedback(shown, candidates[1::-1], known, (number / 7, -1e-300), BEGAN + timedelta(microseconds=number))


def main(url: str, first: str, last: str, step: str, batch: str) -> None:
    """Write the records from `first` towards `last`; print each once it is acknowledged, with its outcome."""
    numbers = range(int(first), int(last), int(step))
    with FeedbackLog(url, timeout=60) as log:
        for start in range(0, len(numbers), int(batch)):
            part = numbers[start : start + int(batch)]
            outcomes = log.record([feedback(number) for number in part])
            for number, outcome in zip(part, outcomes, strict=True):
                print(number, outcome.value, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
