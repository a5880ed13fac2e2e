"""The two-stage system of a run's settings: which late-stage ranker, what it goes by, K and slot weights."""

from pathlib import Path
from typing import get_args

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.config import LateStageRankerName, TrainConfig
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.learned_ranker import fit_learned_ranker
from esr_trainer.policy_value import System
from esr_trainer.ranker_files import RANKER_FILES, RankerFile
from esr_trainer.slots import SLOT_WEIGHTS
from esr_trainer.world import Catalogue, World


def system_of(config: TrainConfig, catalogue: Catalogue, ranker: RankerFile | None = None) -> System:
    """The system of the settings.

    Args:
        config: LSR, slot weights, K and L.
        catalogue: the world; where the ranker is a file, any ids.
        ranker: the LSR's own file; None for an oracle.

    Raises:
        UsageError: the file does not hold a ranker for this catalogue, or an oracle has no world.
    """
    order = LATE_STAGE_RANKERS["learned" if isinstance(config.lsr, Path) else config.lsr]
    if ranker:
        scores = ranker.open(catalogue)
    elif isinstance(catalogue, World):
        scores = catalogue.scores
    else:
        raise UsageError(f"lsr ({config.lsr}) goes by a world's rewards, and there is none")
    slot_weights = SLOT_WEIGHTS[config.slot_weights](config.slate).to(config.device)
    return System(order, scores, config.candidates, slot_weights, ranker)


def ranker_of(config: TrainConfig, world: World) -> RankerFile | None:
    """The file of the settings' LSR: fitted now, or read; None for an oracle, which has none.

    Raises:
        UsageError: it cannot be read.
    """
    if config.lsr == "learned":
        content = fit_learned_ranker(world, config.lsr_interactions, config.world_seed)
        return RankerFile("ranker.safetensors", content)
    return read_ranker(config.lsr) if isinstance(config.lsr, Path) else None


def read_ranker(path: Path) -> RankerFile:
    """A ranker by path: an .onnx or .safetensors file, or a run or checkpoint directory that keeps one.

    Raises:
        UsageError: there is none.
    """
    if path.is_dir():
        found = Checkpoint(path).ranker()
        if found is None:
            raise UsageError(f"lsr ({path}) is a run with an oracle, which has no ranker of its own")
        return found
    if not path.is_file():
        names = ", ".join(get_args(LateStageRankerName))
        raise UsageError(f"lsr ({path}) is none of {names}, and no file")
    name = f"ranker{path.suffix}"
    if name not in RANKER_FILES:
        raise UsageError(f"lsr ({path}) is neither an .onnx nor a .safetensors file")
    return RankerFile(name, path.read_bytes())
