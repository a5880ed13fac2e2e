"""Tables that several processes wrote, each its rows, as one process reads them: a piece at a time, into place.

torch.distributed.checkpoint's safetensors files keep a piece's offsets in their header.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load


def read_into(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that one process loads, as it was asked to
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)


def tensors_in(directory: Path) -> dict[str, Tensor]:
    """The whole shape and the type of every tensor that is there, by name, without what it holds."""
    found = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(metadata.size, dtype=metadata.properties.dtype, device="meta")
        for name, metadata in found.items()
        if isinstance(metadata, TensorStorageMetadata)
    }
