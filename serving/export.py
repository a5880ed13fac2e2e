"""Export: from a checkpoint to a bundle, published only when torch, ONNX Runtime and FAISS agree.

Axes: B batch, C contexts, N items, M experts, D embedding dimension, V vocabulary, P values of a feature, K candidates.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.features import ID, Features
from esr_trainer.policy import greedy_candidates
from esr_trainer.quotas import expert_of_position, quotas
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.vocabularies import Vocabulary, vocabularies_to_json
from esr_trainer.whole_directory import next_numbered, sha256, written_whole
from serving import bundle
from serving.bundle import Manifest
from serving.bundle_files import files_of
from serving.export_check import NUM_CHECKED, check_served_is_trained, spread
from serving.export_ranker import write_ranker
from serving.export_tower import write_tower
from serving.index_building import BuiltIndex, IndexName, build_index, choose_kind, measured, tune, write_index
from serving.triton import write_model_repository

NUM_GOLDEN = 64


def export(run: Path, root: Path, index: IndexName = "auto", min_recall: float = 0.95) -> Path:
    """Publish a run's last checkpoint (or a checkpoint directory) as the next version of a bundle root.

    Args:
        run: run or checkpoint directory.
        root: bundle root.
        index: kind of index; auto is exact up to EXACT_UP_TO items.
        min_recall: of the index on the golden queries, against exact search.

    Returns:
        The bundle's directory.

    Raises:
        UsageError: the checkpoint cannot be read, the index finds too little, or what would be served is not what was
            trained; nothing is then published.
    """
    checkpoint = Checkpoint(run)
    policy = checkpoint.policy().eval()
    built = built_index(policy, checkpoint.config.candidates, index, min_recall)
    with next_numbered(root) as (version, directory):
        write_bundle(directory, checkpoint, policy, built)
        check_served_is_trained(directory, version, policy, checkpoint.config.candidates)
    return root / str(version)


def export_for_triton(bundle_directory: Path, repository: Path) -> None:
    """Write a bundle as a Triton model repository, whole or not at all.

    Raises:
        UsageError: something is there already, or nothing can be written there.
    """
    check_free(repository)
    try:
        with written_whole(repository) as directory:
            write_model_repository(directory, bundle_directory, int(bundle_directory.name))
    except OSError as error:
        raise UsageError(f"triton ({repository}) cannot be written: {error.strerror or error}") from error


def check_free(repository: Path) -> None:
    """Check, before anything is published, that a model repository may be written."""
    if repository.is_file() or (repository.is_dir() and any(repository.iterdir())):
        raise UsageError(f"triton ({repository}) is already there: a model repository is written whole, not changed")


def write_bundle(directory: Path, checkpoint: Checkpoint, policy: EarlyStageRanker, built: BuiltIndex) -> None:
    """Write every file of a bundle, the manifest last."""
    contexts, items = policy.context_tower.features, policy.item_tower.features
    with torch.no_grad():
        write_tower(directory / bundle.USER_TOWER, policy.context_tower, 1 / policy.temperature)
        write_tower(directory / bundle.ITEM_TOWER, policy.item_tower)
        write_index(directory, built)
        if ranker := checkpoint.ranker():
            write_ranker(directory / bundle.RANKER, ranker, contexts.ids, items.ids)
        write_golden_queries(directory / bundle.GOLDEN, policy, checkpoint.config.candidates)
    np.save(directory / bundle.ITEM_IDS, np.array(items.ids), allow_pickle=False)
    np.save(directory / bundle.CONTEXT_IDS, np.array(contexts.ids), allow_pickle=False)
    np.savez_compressed(directory / bundle.CONTEXT_FEATURES, allow_pickle=False, **contexts.bags)
    sides = {"context": without_ids(contexts), "item": without_ids(items)}
    (directory / bundle.VOCABULARIES).write_text(
        json.dumps({side: vocabularies_to_json(vocabularies) for side, vocabularies in sides.items()})
    )
    (directory / "MODEL_CARD.md").write_text(model_card(checkpoint))
    write_manifest(directory, checkpoint, policy, built)


@torch.no_grad()
def built_index(policy: EarlyStageRanker, num_candidates: int, index: IndexName, min_recall: float) -> BuiltIndex:
    """The index of a policy's items, its search tuned on some contexts and measured on the golden queries."""
    embeddings = policy.item_tower().transpose(0, 1).numpy()  # (M, N, D)
    num_contexts = len(policy.context_tower.features.ids)
    golden = spread(num_contexts, NUM_GOLDEN)
    others = spread(num_contexts, NUM_CHECKED)
    others = others[~torch.isin(others, golden)]

    def queries(rows: Tensor) -> np.ndarray:
        embeddings: np.ndarray = (policy.context_tower(rows) / policy.temperature).numpy()
        return embeddings

    built = build_index(choose_kind(index, embeddings.shape[1]), embeddings)
    built = tune(built, queries(others if len(others) else golden), num_candidates, min_recall)
    return measured(built, queries(golden), num_candidates, min_recall)


def write_golden_queries(path: Path, policy: EarlyStageRanker, num_candidates: int) -> None:
    """Write what the trained model answers for some contexts; a server compares before it serves."""
    rows = spread(len(policy.context_tower.features.ids), NUM_GOLDEN)
    logits = policy(rows)
    candidates = greedy_candidates(logits, num_candidates)
    expert = torch.tensor(expert_of_position(num_candidates, logits.shape[1]))
    scores = logits[torch.arange(len(rows))[:, None], expert, candidates]
    np.savez(
        path, allow_pickle=False, contexts=rows.numpy(), candidates=candidates.numpy(), scores=scores.float().numpy()
    )


def write_manifest(directory: Path, checkpoint: Checkpoint, policy: EarlyStageRanker, built: BuiltIndex) -> None:
    """Write manifest.json over every file that is there."""
    config = checkpoint.config
    manifest = Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        model_id=f"{config.estimator}-{sha256(checkpoint.directory / 'checkpoint.json')[:12]}",
        step=checkpoint.description.step,
        num_contexts=len(policy.context_tower.features.ids),
        num_items=len(policy.item_tower.features.ids),
        num_experts=config.experts,
        embedding_dim=config.embedding_dim,
        num_candidates=config.candidates,
        quotas=quotas(config.candidates, config.experts),
        metric="inner_product",
        index=built.kind,
        nprobe=built.nprobe,
        ef_search=built.ef_search,
        recall=built.recall,
        dtype="float32",
        files=files_of(directory),
    )
    (directory / bundle.MANIFEST).write_text(manifest.model_dump_json(indent=2))


def without_ids(features: Features) -> dict[str, Vocabulary]:
    """The vocabularies of the features; the ids have files of their own."""
    return {name: vocabulary for name, vocabulary in features.vocabularies.items() if name != ID}


def model_card(checkpoint: Checkpoint) -> str:
    """What the model is and what it was measured at, for people."""
    description = checkpoint.description
    config = description.config
    metrics = "\n".join(f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in description.metrics.items())
    return (
        "# Early-stage ranker\n\n"
        f"- world: {description.world}\n"
        f"- estimator `{config.estimator}`, {description.step} steps, seed {config.seed}\n"
        f"- K = {config.candidates}, L = {config.slate}, M = {config.experts}, late-stage ranker `{config.lsr}`, "
        f"slot weights `{config.slot_weights}`\n\n"
        f"| mean over all contexts | reward |\n|---|---|\n{metrics}\n"
    )
