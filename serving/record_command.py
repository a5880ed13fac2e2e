"""`python -m serving record`: send an answer back with what it earned."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliPositionalArg

from esr_trainer.command_line import UsageError, one_line
from serving.client_commands import ClientCommand
from serving.shown_answer import ShownAnswer


class Record(ClientCommand):
    """Send an answer back with what it earned, into the server's feedback log (`serve --feedback-log`).

    `python -m serving retrieve --context-id 14 --seed 1 --json | tee answer.json`, show its items to somebody, then
    `python -m serving record answer.json --reward 7=1`. An answer is recorded once: the same again changes nothing,
    other rewards for it are refused. Learn with `python -m esr_trainer --from-log`, which uses draws (--seed) alone.
    """

    answer: CliPositionalArg[Path] = Path("-")
    """What `retrieve --json` printed; -: stdin. Its slate was shown, or all its candidates where it has none."""
    reward: tuple[str, ...] = ()
    """ITEM=VALUE, as often as needed: what an item that was shown earned; larger is better. Items without one: 0."""

    def run(self) -> Mapping[str, Any]:
        """Send it, and say whether it is new."""
        from serving.client import record_feedback

        answer = read_answer(self.answer)
        rewards = rewards_of(self.reward, answer.shown_items())
        is_new = record_feedback(self.connection(), answer.feedback(rewards))
        state = "recorded" if is_new else "was recorded before"
        count, earned = len(answer.shown_items()), sum(rewards.values())
        print(f"request {answer.request_id} {state}: {count} items, {earned:g} earned")
        return {"request_id": answer.request_id, "is_new": is_new, "rewards": rewards}


def read_answer(path: Path) -> ShownAnswer:
    """The answer on the last line of a file; - is stdin.

    Raises:
        UsageError: it holds none.
    """
    try:
        lines = (sys.stdin.read() if path == Path("-") else path.read_text()).split("\n")
        answer = ShownAnswer.model_validate_json(next((line for line in reversed(lines) if line.strip()), ""))
    except UnicodeDecodeError as error:
        raise UsageError(f"answer ({path}) is no text: it must hold what `retrieve --json` printed") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = one_line(error) if first["loc"] else "no JSON object on its last line"
        raise UsageError(f"answer ({path}) must hold what `retrieve --json` printed: {problem}") from error
    if beyond := [position for position in answer.slate if position >= len(answer.item_ids)]:
        raise UsageError(f"answer ({path}): slate ({beyond[0]}) must be below its {len(answer.item_ids)} items")
    return answer


def rewards_of(given: Sequence[str], shown: Sequence[str]) -> dict[str, float]:
    """The rewards by item.

    Raises:
        UsageError: one is not ITEM=VALUE, or not of an item that was shown, or an item has two.
    """
    rewards: dict[str, float] = {}
    for one in given:
        item, _, value = one.rpartition("=")
        try:
            reward = float(value)
        except ValueError:
            reward = math.nan
        if not item or not math.isfinite(reward):
            raise UsageError(f"reward ({one}) must be ITEM=VALUE with a finite number, such as 7=1")
        if item not in shown:
            raise UsageError(f"reward ({one}): item {item} was not shown; shown: {', '.join(shown[:10])}")
        if item in rewards:
            raise UsageError(f"reward ({one}): item {item} has a reward already, {rewards[item]:g}")
        rewards[item] = reward
    return rewards
