"""Extreme classification in the XMC repository's sparse format, such as Wiki10-31K: points are contexts, labels items.

The header is "num_points num_features num_labels"; a line is "l1,l2 f:v f:v", its labels first, with nothing before the
space where there is none. Axes: C points, N labels.
"""

from pathlib import Path

import torch

from esr_trainer.command_line import UsageError
from esr_trainer.features import id_features
from esr_trainer.vocabularies import Categories, padded
from esr_trainer.whole_directory import sha256
from esr_trainer.world import World, check_size
from offline_eval.procedures.labelled_worlds import LabelledWorld

FEATURES = 100
"""Features of a point that a tower sees: those of the highest value."""
CUTS = (1,)
"""Precision@1 is what is published of Wiki10-31K."""


def extreme_classification(path: Path) -> LabelledWorld:
    """Read a file; a point's features are words of its text, a label has none but its id.

    Raises:
        UsageError: the file is missing or malformed, or too large.
    """
    if not path.is_file():
        raise UsageError(f"data ({path}) is not a file")
    with path.open(encoding="utf-8", errors="replace") as file:
        num_points, num_features, num_labels = header(path, file.readline())
        check_size(num_points, num_labels)
        labels, bags = torch.zeros(num_points, num_labels), []
        for row, line in enumerate(file):
            if row == num_points:
                raise UsageError(f"data ({path}): more lines than the {num_points} points of the header")
            try:
                owned, bag = point(line, num_features, num_labels)
            except ValueError as error:
                raise UsageError(f"data ({path}), line {row + 2}: {error}") from error
            labels[row, owned] = 1
            bags.append(bag)
    if len(bags) < num_points:
        raise UsageError(f"data ({path}): {len(bags)} lines of {num_points} points of the header")
    contexts = id_features(tuple(map(str, range(num_points))))
    contexts.vocabularies["feature"] = Categories(map(str, range(num_features)))
    contexts.bags["feature"] = padded(bags, max(1, *map(len, bags)))
    items = id_features(tuple(map(str, range(num_labels))))
    world = World(
        environment="extreme classification",
        description=f"{path.name}, real labels: {num_points} points x {num_labels} labels",
        context_ids=contexts.ids,
        item_ids=items.ids,
        score=labels,
        expected_reward=labels,
        reward_std=torch.zeros(()).expand(labels.shape),
        source=sha256(path),
    )
    return LabelledWorld(world, contexts, items, CUTS)


def header(path: Path, line: str) -> tuple[int, int, int]:
    """num_points, num_features, num_labels.

    Raises:
        UsageError: it is something else.
    """
    words = line.split()
    if len(words) != 3 or not all(word.isdecimal() and int(word) for word in words):
        raise UsageError(f"data ({path}): the header {line.strip()[:80]!r} is not num_points num_features num_labels")
    num_points, num_features, num_labels = map(int, words)
    return num_points, num_features, num_labels


def point(line: str, num_features: int, num_labels: int) -> tuple[list[int], list[int]]:
    """A line's labels, and its FEATURES features of the highest value.

    Raises:
        ValueError: it is something else, or one of them exceeds the header's number.
    """
    first, _, rest = line.rstrip("\r\n").partition(" ")
    if ":" in first:
        raise ValueError(f"{first[:80]} stands where the labels, or nothing and a space, belong")
    labels = [int(label) for label in first.split(",") if label]
    values = {int(feature): float(value) for feature, value in (pair.split(":") for pair in rest.split())}
    for name, numbers, count in (("label", labels, num_labels), ("feature", values, num_features)):
        if wrong := next((number for number in numbers if not 0 <= number < count), None):
            raise ValueError(f"{name} {wrong} is not among the header's {count}")
    return labels, sorted(values, key=lambda feature: values[feature], reverse=True)[:FEATURES]
