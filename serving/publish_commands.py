"""`python -m serving export` and `items`: publish a bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt
from pydantic_settings import CliPositionalArg

from esr_trainer.command_line import Command, UsageError


class Export(Command):
    """Publish a run's last checkpoint as the next version, once torch, ONNX Runtime and FAISS agree."""

    run_directory: CliPositionalArg[Path] = Field(alias="run")
    """Run or checkpoint directory of esr_trainer."""
    out: Path = Path("bundles")
    """Bundle root; the bundle is written whole as <root>/<next integer>."""
    index: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    """Kind of index: flat is exact; ivf (clusters) and hnsw (a graph) are faster from some 50,000 items on, and take
    minutes to build for a million; auto is flat up to 100,000 items, then ivf."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """The least share of the exact candidates, on the golden queries, with which a bundle is published."""
    triton: Path | None = None
    """Also write the bundle as a Triton model repository: a directory that is not there yet."""

    def run(self) -> Mapping[str, Any]:
        """Export."""
        try:
            from serving.export import check_free, export, export_for_triton
        except ModuleNotFoundError as error:
            raise needs_training_packages("export", error) from error
        if self.triton:
            check_free(self.triton)
        directory = export(self.run_directory, self.out, self.index, self.min_recall)
        result = published(directory)
        if self.triton is None:
            return result
        export_for_triton(directory, self.triton)
        print(f"Triton model repository: {self.triton} (Triton's Python needs this package for the model esr)")
        return {**result, "triton": str(self.triton)}


class Items(Command):
    """Publish a version with items added and removed, its towers as they are, as the next version."""

    root: CliPositionalArg[Path]
    """Bundle root."""
    add: Path | None = None
    """CSV or Parquet of new items: ids in the first column, then a column of each feature of the item tower; an unknown
    value counts as none."""
    remove: Path | None = None
    """Text with the ids to remove, one a line."""
    version: PositiveInt | None = None
    """The version to start from; the highest by default."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """As for export."""

    def run(self) -> Mapping[str, Any]:
        """Publish."""
        try:
            from serving.items import with_items
        except ModuleNotFoundError as error:
            raise needs_training_packages("items", error) from error
        return published(with_items(self.root, self.add, self.remove, self.version, self.min_recall))


def needs_training_packages(command: str, error: ModuleNotFoundError) -> UsageError:
    """What the base install lacks."""
    return UsageError(f"{command} needs the training packages ({error.name} is missing): install '.[train]'")


def published(directory: Path) -> Mapping[str, Any]:
    """Say which bundle is there now."""
    from serving.bundle import read_manifest

    manifest = read_manifest(directory)
    found = (
        "torch, ONNX Runtime and FAISS give the same candidates"
        if manifest.index == "flat"
        else f"{manifest.index} index, recall@{manifest.num_candidates} {manifest.recall:.4f} on the golden queries"
    )
    print(f"bundle: {directory} ({found})")
    print(f"next: python -m serving serve {directory.parent}")
    return {
        "bundle": str(directory),
        "version": int(directory.name),
        "items": manifest.num_items,
        "index": manifest.index,
        "recall": manifest.recall,
    }
