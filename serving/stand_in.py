"""A bundle of stand-in embeddings, to measure catalogues that there is no model of yet; it says so in its name.

Axes: C contexts, N items, D embedding dimension, K candidates, Q golden queries.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from esr_trainer.command_line import UsageError
from esr_trainer.whole_directory import next_numbered
from serving import bundle
from serving.bench_index import STAND_IN, stand_in_embeddings
from serving.bundle import Manifest
from serving.bundle_files import files_of
from serving.golden_queries import write_golden_answers
from serving.index_building import (
    BuiltIndex,
    IndexName,
    build_index,
    choose_kind,
    exact_index,
    measured,
    tune,
    write_index,
)

NUM_CONTEXTS = 2_000
NUM_GOLDEN = 64


def publish_stand_in(root: Path, num_items: int, num_candidates: int, index: IndexName, seed: int) -> Path:
    """Publish a bundle of stand-in embeddings as the next version of a bundle root.

    Args:
        root: bundle root.
        num_items: N.
        num_candidates: K "as trained".
        index: kind of index.
        seed: of the embeddings.

    Returns:
        The bundle's directory.

    Raises:
        UsageError: K exceeds N, or the root cannot be written.
    """
    if num_candidates > num_items:
        raise UsageError(f"num_candidates ({num_candidates}) exceeds items ({num_items})")
    items, contexts = stand_in_embeddings(num_items, NUM_CONTEXTS, np.random.default_rng(seed))
    golden = np.linspace(0, NUM_CONTEXTS - 1, NUM_GOLDEN).astype(np.int64)
    others = np.setdiff1d(np.arange(NUM_CONTEXTS), golden)[:512]
    built = tune(build_index(choose_kind(index, num_items), items), contexts[others], num_candidates, min_recall=0.95)
    built = measured(built, contexts[golden], num_candidates, min_recall=0.95)
    with next_numbered(root, "root") as (version, directory):
        write_bundle(directory, built, contexts, golden, num_candidates, f"stand-in-{num_items}-seed-{seed}")
    return root / str(version)


def write_bundle(
    directory: Path, built: BuiltIndex, contexts: np.ndarray, golden: np.ndarray, num_candidates: int, model_id: str
) -> None:
    """Write every file of a bundle, the manifest last."""
    num_items = built.embeddings.shape[1]
    (directory / bundle.USER_TOWER).write_bytes(lookup_tower(contexts))
    (directory / bundle.ITEM_TOWER).write_bytes(lookup_tower(built.embeddings.transpose(1, 0, 2)[:1]))
    write_index(directory, built)
    np.save(directory / bundle.ITEM_IDS, np.arange(num_items).astype(str), allow_pickle=False)
    np.save(directory / bundle.CONTEXT_IDS, np.arange(NUM_CONTEXTS).astype(str), allow_pickle=False)
    np.savez_compressed(directory / bundle.CONTEXT_FEATURES, allow_pickle=False, id=np.arange(NUM_CONTEXTS)[:, None])
    (directory / bundle.VOCABULARIES).write_text(json.dumps({"context": {}, "item": {}}))
    (directory / "MODEL_CARD.md").write_text(f"# Not a model\n\nFor measurements: {STAND_IN}.\n")
    exact = exact_index(built.embeddings).pick(contexts[golden], num_candidates)
    write_golden_answers(directory / bundle.GOLDEN, golden, exact)
    manifest = Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        model_id=model_id,
        step=0,
        num_contexts=NUM_CONTEXTS,
        num_items=num_items,
        num_experts=1,
        embedding_dim=built.embeddings.shape[2],
        num_candidates=num_candidates,
        quotas=[num_candidates],
        metric="inner_product",
        index=built.kind,
        nprobe=built.nprobe,
        ef_search=built.ef_search,
        recall=built.recall,
        dtype="float32",
        files=files_of(directory),
    )
    (directory / bundle.MANIFEST).write_text(manifest.model_dump_json(indent=2))


def lookup_tower(embeddings: np.ndarray) -> bytes:
    """An ONNX tower that looks up rows: (C, 1, D) float32; input `id` (B, 1) int64, output `embedding` (B, 1, D)."""
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["id", "axis"], ["row"]),
            helper.make_node("Gather", ["table", "row"], ["embedding"]),
        ],
        "lookup",
        [helper.make_tensor_value_info("id", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", *embeddings.shape[1:]])],
        [
            numpy_helper.from_array(np.ascontiguousarray(embeddings), "table"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized
