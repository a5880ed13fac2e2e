"""The settings of a relevance oracle; without torch, for the command line."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from esr_trainer.command_line import Options


class RelevanceOptions(Options):
    """Who says what is relevant, and what a judge may cost."""

    oracle: str = "labels"
    """`labels`: the world's expected reward, capped to [0, 1], or 1 where it is above --relevant-above;
    FILE.py:function: a function of a list of (context, item) pairs, each with its id and texts, that gives a number in
    [0, 1] for each; or a judge's URL: http(s), which gets the pairs as JSON, or grpc(s)://HOST:PORT, which has
    proto/esr/v1/relevance.proto's RelevanceService (grpcs: with TLS)."""
    relevant_above: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Expected reward above which a label is 1; the others are 0."""
    judge_cache: Path = Path("judgements.db")
    """SQLite file of every answer of a judge; what is in it is never asked again."""
    judge_budget: PositiveInt = 1000
    """The most calls of a judge, failed ones and repeated ones counted; answers from the cache are free."""
    judge_batch: PositiveInt = 32
    """Pairs of one call."""
    judge_concurrency: PositiveInt = 4
    """Calls at the same time."""
    judge_attempts: PositiveInt = 4
    """Calls for the same pairs before giving up; the waits between them double, at random lengths."""
    judge_seconds: PositiveFloat = 30.0
    """The longest that one call may take."""
    judge_token_file: Path | None = None
    """File of the token that the judge wants as `Authorization: Bearer` (gRPC: the metadata of that name)."""
