"""MovieLens-1M by GroupLens's own ratings.dat, users.dat and movies.dat: full labels, as in Ma et al. (WWW 2020, §5).

A rating above 3 is a label of 1, any other one of 0; where a user rated nothing a simulator answers: a network on the
joined features of user and movie that is fitted to all ratings. Axes: C users, N movies.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from esr_trainer.command_line import UsageError, note
from esr_trainer.features import Features, id_features
from esr_trainer.hashed_text import HashedText
from esr_trainer.reward_model import Interactions
from esr_trainer.vocabularies import Categories, Vocabulary, padded
from esr_trainer.whole_directory import sha256
from esr_trainer.world import World, check_size
from offline_eval.procedures import joined_network
from offline_eval.procedures.labelled_worlds import LabelledWorld

RATINGS = ("UserID", "MovieID", "Rating", "Timestamp")
USERS = ("UserID", "Gender", "Age", "Occupation", "Zip-code")
MOVIES = ("MovieID", "Title", "Genres")
SEPARATOR = "::"
SCALE = ("1", "2", "3", "4", "5")
"""Ratings."""
RELEVANT = 3
"""A higher rating is a label of 1."""
TITLE = HashedText(buckets=1 << 12, narrow=(3, 3))
"""Titles are short: their trigrams."""
CUT = 0.764506
"""A missing label is 1 from this simulated chance on; the published code's."""


def movielens(directory: Path) -> LabelledWorld:
    """Read the three files, and fit the simulator.

    Raises:
        UsageError: a file is missing or malformed, or a rating is of a user or a movie that has no line.
    """
    users, movies = (read(directory, name, fields) for name, fields in (("users.dat", USERS), ("movies.dat", MOVIES)))
    check_size(len(users), len(movies))
    contexts = features_of(users, USERS[1:], text=())
    items = features_of(movies, MOVIES[1:], text=("Title",))
    ratings = rated(directory, contexts.ids, items.ids)
    note(f"fitting the simulator to {len(ratings.rewards):,} ratings")
    logits = joined_network.fit(contexts, items, ratings, seed=0).matrix()
    labels = (logits >= math.log(CUT / (1 - CUT))).float()
    labels[ratings.contexts, ratings.items] = ratings.rewards
    world = World(
        environment="movielens",
        description=f"MovieLens, {len(ratings.rewards):,} real labels 1{{rating > 3}} of {len(users)} users x "
        f"{len(movies)} movies, the others simulated",
        context_ids=contexts.ids,
        item_ids=items.ids,
        score=labels,
        expected_reward=labels,
        reward_std=torch.zeros(()).expand(labels.shape),
        source=source_of(directory),
    )
    return LabelledWorld(world, contexts, items)


def source_of(directory: Path) -> str:
    """What decides the world: SHA-256 of the three files'."""
    hashes = "".join(sha256(directory / name) for name in ("ratings.dat", "users.dat", "movies.dat"))
    return hashlib.sha256(hashes.encode()).hexdigest()


def read(directory: Path, name: str, fields: Sequence[str]) -> list[tuple[str, ...]]:
    """The lines of a file, each a value per field.

    Raises:
        UsageError: the file is missing or empty, or a line has another number of fields.
    """
    path = directory / name
    if not path.is_file():
        raise UsageError(f"data ({directory}) has no {name}: name the folder of ratings.dat, users.dat and movies.dat")
    lines = path.read_text(encoding="latin-1").split("\n")
    rows = [tuple(line.rstrip("\r").split(SEPARATOR)) for line in lines if line.strip()]
    if wrong := next((row for row in rows if len(row) != len(fields)), None):
        raise UsageError(f"data ({path}): {SEPARATOR.join(wrong)[:80]} is not {SEPARATOR.join(fields)}")
    if not rows:
        raise UsageError(f"data ({path}) has no line")
    return rows


def features_of(rows: Sequence[tuple[str, ...]], names: Sequence[str], text: Sequence[str]) -> Features:
    """Ids and features: text by its n-grams, any other as categories, several with | between them.

    Raises:
        UsageError: an id comes twice.
    """
    ids = [row[0] for row in rows]
    if len(set(ids)) < len(ids):
        raise UsageError(f"data: {next(one for one in ids if ids.count(one) > 1)} has two lines")
    features = id_features(ids)
    for column, name in enumerate(names, start=1):
        cells = [[row[column]] if name in text else row[column].split("|") for row in rows]
        categories = Categories(sorted({value for cell in cells for value in cell}))
        vocabulary: Vocabulary = TITLE if name in text else categories
        bags = [vocabulary.indices(cell) for cell in cells]
        features.vocabularies[name], features.bags[name] = vocabulary, padded(bags, max(1, *map(len, bags)))
    return features


def rated(directory: Path, user_ids: Sequence[str], movie_ids: Sequence[str]) -> Interactions:
    """The ratings as labels; the last one counts where a user rated a movie twice.

    Raises:
        UsageError: the file is missing or malformed, or knows others than those.
    """
    rows = read(directory, "ratings.dat", RATINGS)
    users, movies = ({one: row for row, one in enumerate(ids)} for ids in (user_ids, movie_ids))
    for row in rows:
        if row[0] not in users or row[1] not in movies or row[2] not in SCALE:
            raise UsageError(
                f"data ({directory / 'ratings.dat'}): {SEPARATOR.join(row)[:80]} is no rating from 1 to 5 by a user of "
                "users.dat of a movie of movies.dat"
            )
    labels = {(users[row[0]], movies[row[1]]): float(int(row[2]) > RELEVANT) for row in rows}
    pairs: Tensor = torch.tensor(list(labels))
    if len(pairs) < 2:
        raise UsageError(f"data ({directory / 'ratings.dat'}) holds {len(pairs)} rating, too few to fit a simulator to")
    return Interactions(pairs[:, 0], pairs[:, 1], torch.tensor(list(labels.values())), torch.ones(len(pairs)))
