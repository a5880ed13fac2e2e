"""A judge of relevance behind a URL, such as an LLM: called within a budget, and never twice for one pair.

Over HTTP a call is `POST {"pairs": [{"context": {"id": ..., "texts": {column: text}}, "item": ...}, ...]}`; the answer
is 200 and `{"relevance": [number in [0, 1], ...]}`, one per pair.
"""

import hashlib
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
import tenacity
import urllib3
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy.dialects import sqlite

from esr_trainer.command_line import UsageError
from esr_trainer.pairs import Pair, checked

MAX_ANSWER_BYTES = 1 << 20
FIRST_WAIT = 0.5
"""Seconds: the first wait is up to this long, the next up to twice as long, and so on."""
LONGEST_WAIT = 30.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same call may succeed."""
LOOKED_UP = 500
"""Keys of one query."""

JUDGEMENTS = sa.Table(
    "judgements",
    sa.MetaData(),
    sa.Column("key", sa.LargeBinary, primary_key=True),
    sa.Column("relevance", sa.Float, nullable=False),
)


class PassingError(UsageError):
    """A call failed, or its answer was none; another try may do better."""


class Answer(BaseModel):
    """What a judge sends."""

    model_config = ConfigDict(strict=True)

    relevance: list[float]


class Budget:
    """A number of calls, taken by any thread."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.left = calls
        self._lock = threading.Lock()

    def take(self, judge: str) -> None:
        """Take a call.

        Raises:
            UsageError: none is left.
        """
        with self._lock:
            if self.left == 0:
                raise UsageError(f"oracle ({judge}): the budget of {self.calls} calls is spent")
            self.left -= 1


class Judge(ABC):
    """Calls a judge, within a budget, and again while a failure may pass."""

    def __init__(self, url: str, budget: int, attempts: int) -> None:
        self.url = url
        self.budget = Budget(budget)
        self.attempts = attempts

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """The relevance of some pairs, by one call, tried again while its failure may pass.

        Raises:
            UsageError: the budget is spent, or every attempt failed.
        """
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(PassingError),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
            reraise=True,
        )
        return attempts(self._call, pairs)

    def _call(self, pairs: Sequence[Pair]) -> list[float]:
        self.budget.take(self.url)
        answer = self.answer(pairs)
        try:
            return checked(answer, len(pairs), self.url)
        except UsageError as error:
            raise PassingError(str(error)) from error

    @abstractmethod
    def answer(self, pairs: Sequence[Pair]) -> list[float]:
        """What one call brings.

        Raises:
            PassingError: it failed, and another may not.
            UsageError: it failed, as every other would.
        """


class HttpJudge(Judge):
    """Calls a judge over HTTP."""

    def __init__(self, url: str, budget: int, attempts: int, seconds: float, token_file: Path | None) -> None:
        """Check the URL and read the token; nothing is called yet.

        Raises:
            UsageError: the URL is not of http or https, names no host or carries a password, or the token's file cannot
                be read.
        """
        super().__init__(url, budget, attempts)
        self.seconds = seconds
        self._headers = {"Content-Type": "application/json", **authorization(token_file)}
        check_url(url, ("http", "https"))
        self._pool = urllib3.PoolManager(maxsize=64, retries=False)

    def answer(self, pairs: Sequence[Pair]) -> list[float]:
        """What one POST brings."""
        content = self._post(json.dumps({"pairs": [pair.to_json() for pair in pairs]}).encode())
        try:
            return Answer.model_validate_json(content).relevance
        except ValidationError as error:
            raise PassingError(f"oracle ({self.url}) answered something else than relevance") from error

    def _post(self, body: bytes) -> bytes:
        ends = time.monotonic() + self.seconds
        try:
            response = self._pool.request(
                "POST",
                self.url,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(total=self.seconds),
                redirect=False,  # the token, and what the pairs say, are for nobody else
                preload_content=False,
            )
            with response:
                if response.status != 200:
                    kind = PassingError if response.status in PASSING else UsageError
                    raise kind(f"oracle ({self.url}) answered with status {response.status}")
                return read_until(response, ends, self.url)
        except urllib3.exceptions.HTTPError as error:
            raise PassingError(f"oracle ({self.url}) cannot be reached: {type(error).__name__}") from error


def read_until(response: urllib3.BaseHTTPResponse, ends: float, url: str) -> bytes:
    """An answer's body, however slowly it drips, until a time of the monotonic clock."""
    content = b""
    while chunk := response.read1(MAX_ANSWER_BYTES):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise UsageError(f"oracle ({url}) answered with more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > ends:
            raise PassingError(f"oracle ({url}) took too long")
    return content


def check_url(url: str, schemes: tuple[str, str]) -> str:
    """Refuse what no call should go to; the host and port."""
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError as error:
        raise UsageError("oracle: the URL cannot be parsed") from error
    if parts.auth:
        raise UsageError(f"oracle ({parts.scheme}://{parts.host}): a URL may hold no password; use --judge-token-file")
    if parts.scheme not in schemes or not parts.host:
        raise UsageError(f"oracle ({url}) must be of {' or '.join(schemes)}, and name a host")
    return parts.netloc or ""


def authorization(token_file: Path | None) -> dict[str, str]:
    """The header that carries the token of a file."""
    if token_file is None:
        return {}
    try:
        token = token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"judge_token_file ({token_file}) cannot be read") from error
    if not token or not token.isascii() or not token.isprintable():
        raise UsageError(f"judge_token_file ({token_file}) must hold one line of ASCII characters")
    return {"Authorization": f"Bearer {token}"}


class CachedJudge:
    """A judge whose answers are kept in a file, and asked for in batches, several at a time."""

    def __init__(self, judge: Judge, path: Path, batch: int, concurrency: int) -> None:
        """Open the file, or make it.

        Raises:
            UsageError: it cannot be opened.
        """
        self.judge = judge
        self.path = path
        self.batch = batch
        self.concurrency = concurrency
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
        with self._file() as connection:
            JUDGEMENTS.create(connection, checkfirst=True)

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """The relevance of some pairs: from the file, or else from the judge. Each answered batch is kept at once.

        Raises:
            UsageError: a call failed for good, or the file cannot be used.
        """
        keys = [self.key(pair) for pair in pairs]
        known = self._read(keys)
        missing = [place for place, key in enumerate(keys) if key not in known]
        batches = [missing[start : start + self.batch] for start in range(0, len(missing), self.batch)]
        with ThreadPoolExecutor(self.concurrency) as pool:

            def answers_of(future: Future[list[float]]) -> dict[bytes, float]:
                return dict(zip([keys[place] for place in asked[future]], future.result(), strict=True))

            asked = {pool.submit(self.judge, [pairs[place] for place in batch]): batch for batch in batches}
            try:
                for future in as_completed(asked):
                    answers = answers_of(future)
                    self._keep(answers)
                    known |= answers
            except UsageError:
                pool.shutdown(wait=True, cancel_futures=True)  # what was paid for is kept
                for future in asked:
                    if not future.cancelled() and future.exception() is None:
                        self._keep(answers_of(future))
                raise
        return [known[key] for key in keys]

    def key(self, pair: Pair) -> bytes:
        """SHA-256 of who is asked and what: other texts, or another judge, are another question."""
        return hashlib.sha256(json.dumps([self.judge.url, pair.to_json()], sort_keys=True).encode()).digest()

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        known: dict[bytes, float] = {}
        with self._file() as connection:
            for start in range(0, len(keys), LOOKED_UP):
                chosen = JUDGEMENTS.c.key.in_(keys[start : start + LOOKED_UP])
                found = connection.execute(sa.select(JUDGEMENTS.c.key, JUDGEMENTS.c.relevance).where(chosen))
                known |= {row.key: row.relevance for row in found}
        return known

    def _keep(self, answers: dict[bytes, float]) -> None:
        rows = [{"key": key, "relevance": value} for key, value in answers.items()]
        with self._file() as connection:
            connection.execute(sqlite.insert(JUDGEMENTS).on_conflict_do_nothing(), rows)

    @contextmanager
    def _file(self) -> Iterator[sa.Connection]:
        """A transaction."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise UsageError(f"judge_cache ({self.path}) cannot be used: {error.orig}") from error
