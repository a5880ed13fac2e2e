"""Compare checkpoints by replay: the same contexts and random numbers through each, and through its exported bundle."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.features import load_features
from esr_trainer.policy_value import System, optimal_value, uniform_value
from esr_trainer.system import ranker_of, system_of
from esr_trainer.world import World
from offline_eval.replay.comparison import Comparison
from offline_eval.replay.judging import arena_of, judge_candidate, judge_popularity, judge_reference, popular, trained
from offline_eval.replay.replay_gates import Bars
from offline_eval.replay.segments import Segment, read_segments, segments_of
from offline_eval.replay.served import exported, open_bundle, open_run

SYSTEM_SETTINGS = ("lsr", "slot_weights", "candidates", "slate")
"""What must be the same for two checkpoints' policy values to be comparable."""

POPULARITY = "popularity"


class Question(NamedTuple):
    """What is to be compared, and how."""

    candidates: Sequence[Path]
    """Run or checkpoint directories."""
    baseline: Path | None = None
    """The same, or None for one popular list for everybody."""
    data: Path | None = None
    """Where the world's file is now, if it was moved."""
    overrides: Mapping[str, str | int] = {}
    """LSR, slot weights, K or L to judge by, instead of the ones trained with."""
    bundles: Sequence[Path] = ()
    """The candidates' bundles, in their order; none to export each for the comparison."""
    segments: Path | None = None
    """A table of context features; None for those of the first candidate."""
    bars: Bars = Bars()
    """How high the gates are, and the column that makes the segments."""


class Opened(NamedTuple):
    """What the question's files hold."""

    world: World
    system: System
    settings: Mapping[str, str | int]
    """SYSTEM_SETTINGS."""
    baseline: Checkpoint | None
    candidates: Sequence[Checkpoint]


def compare(question: Question, advance: Callable[[str], None] = lambda doing: None) -> Comparison:
    """Replay every context of the runs' world through each checkpoint and each candidate's bundle, and judge.

    Args:
        question: what to compare.
        advance: called with what is done next: once at the start, then once for each candidate.

    Raises:
        UsageError: a checkpoint or bundle cannot be read, or they were not made for the same world and system.
    """
    advance("the world and the baseline")
    opened = open_question(question)
    world, system = opened.world, opened.system
    popularity = baseline = popular(world, system, POPULARITY)
    if opened.baseline:
        baseline = trained(world, system, str(question.baseline), opened.baseline.policy())
    segments = segments_asked(question, opened.candidates[0], world)
    arena = arena_of(world, system, baseline, segments, len(opened.candidates))
    judged = [judge_popularity(arena, popularity)]
    if opened.baseline:
        judged.append(judge_reference(arena, baseline))
    for position, (path, checkpoint) in enumerate(zip(question.candidates, opened.candidates, strict=True)):
        advance(str(path))
        retriever = open_bundle(question.bundles[position]) if question.bundles else exported(path)
        judged.append(judge_candidate(arena, question.bars, str(path), checkpoint.policy(), retriever))
    return Comparison(
        world=world.description,
        num_contexts=world.num_contexts,
        system=opened.settings,
        baseline=baseline.name,
        confidence=arena.confidence,
        segmented_by=question.bars.segmented_by,
        segment_confidence=arena.segment_confidence if segments else None,
        judged=tuple(judged),
        uniform_policy_value=uniform_value(world, system),
        optimal_policy_value=optimal_value(world, system),
    )


def open_question(question: Question) -> Opened:
    """Open every checkpoint, and the world and system that they share.

    Raises:
        UsageError: one cannot be read, or they share none.
    """
    check_question(question)
    paths = [*([question.baseline] if question.baseline else []), *question.candidates]
    checkpoints = [open_run(path) for path in paths]
    settings, config = same_system(paths, checkpoints, question.overrides)
    world = world_of(config, question.data, checkpoints[0], paths[0])
    ranker = ranker_of(config, world) if "lsr" in question.overrides else checkpoints[0].ranker()
    baseline, candidates = (checkpoints[0], checkpoints[1:]) if question.baseline else (None, checkpoints)
    return Opened(world, system_of(config, world, ranker), settings, baseline, candidates)


def check_question(question: Question) -> None:
    """Refuse options that do not fit together."""
    given, wanted = len(question.bundles), len(question.candidates)
    if given not in (0, wanted):
        raise UsageError(f"bundle ({given} given) must be one for each candidate ({wanted}), in their order")
    if question.segments and question.bars.segmented_by is None:
        raise UsageError(f"segments ({question.segments}) needs --by, the column that makes the segments")


def same_system(
    paths: Sequence[Path], checkpoints: Sequence[Checkpoint], overrides: Mapping[str, str | int]
) -> tuple[dict[str, str | int], TrainConfig]:
    """The system that all checkpoints are judged in, and the first's settings with it.

    Raises:
        UsageError: they were trained in different worlds, or for different systems and none was chosen.
    """
    first = checkpoints[0]
    if not first.config.values_in_a_world:
        raise UsageError(f"{paths[0]} was trained from a log alone: name a world with --data when training, to compare")
    settings = {name: overrides.get(name, setting(first, name)) for name in SYSTEM_SETTINGS}
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        if checkpoint.description.world_fingerprint != first.description.world_fingerprint:
            raise UsageError(f"{path} was trained in another world than {paths[0]}: {checkpoint.description.world}")
        for name in settings.keys() - overrides.keys():
            if (found := setting(checkpoint, name)) != settings[name]:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{path} has {name} {found}, {paths[0]} {settings[name]}; choose one with {option}")
    return settings, TrainConfig.model_validate({**first.config.model_dump(), **overrides, "device": "cpu"})


def setting(checkpoint: Checkpoint, name: str) -> str | int:
    """A setting of the system that a checkpoint was trained with; of an LSR's own file, the content."""
    ranker = checkpoint.ranker() if name == "lsr" else None
    found: str | int = getattr(checkpoint.config, name)
    return f"of SHA-256 {ranker.sha256}" if ranker else found


def world_of(config: TrainConfig, data: Path | None, checkpoint: Checkpoint, path: Path) -> World:
    """The world that a checkpoint was trained in.

    Raises:
        UsageError: the data is gone or another's, or has fewer than K items.
    """
    world = open_world(config.environment, data or config.data, config.world_seed, config.contexts, config.items)
    if world.fingerprint != checkpoint.description.world_fingerprint:
        raise UsageError(f"data ({data or config.data}) is not what {path} was trained on; name it with --data")
    if config.candidates > world.num_items:
        raise UsageError(f"candidates ({config.candidates}) exceeds the data's {world.num_items} items")
    return world


def segments_asked(question: Question, checkpoint: Checkpoint, world: World) -> list[Segment]:
    """The segments that were asked for, by a table's column or by one of the run's own context features."""
    column = question.bars.segmented_by
    if column is None:
        return []
    if question.segments:
        return read_segments(question.segments, column, world.context_ids)
    return segments_of(load_features(checkpoint.directory, "context"), column)
