"""A Hugging Face encoder by name: texts as frozen vectors, mean-pooled and of unit length.

The encoder runs once, before a run begins; the run keeps the vectors, and learns a projection of them. So neither
going on nor a server needs it.

Axes: V texts, T tokens, E the encoder's dimension.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esr_trainer.command_line import UsageError, note

BATCH = 64
"""Texts encoded at a time."""
TOKENS = 512
"""A text is read up to here, or to what the encoder takes if that is less."""


@torch.no_grad()
def encode(texts: Sequence[str], name: str) -> np.ndarray:
    """Vectors of texts: the mean of the last layer over a text's tokens, divided by its length.

    Args:
        texts: V, none empty.
        name: of a model on the Hugging Face hub, or a folder that holds one; its weights must be safetensors, and code
            that comes with it is never run.

    Returns:
        (V, E) float32.

    Raises:
        UsageError: transformers is not installed, or there is no such encoder.
    """
    tokenizer, model = encoder(name)
    most = min(TOKENS, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", TOKENS))
    note(f"encoding {len(texts):,} texts by {name}")
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # alike lengths together: little padding
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        given = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        hidden = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
        vectors[rows] = pooled(hidden, given["attention_mask"]).numpy()
    return vectors


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over a text's tokens, of unit length: (V, T, E), (V, T) -> (V, E)."""
    mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return torch.nn.functional.normalize(mean.float(), dim=1)


def encoder(name: str) -> tuple[Any, Any]:
    """Its tokenizer and its model, which never learns."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise UsageError(f"text_encoder ({name}) needs transformers: pip install early-stage-retriever[hf]") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"text_encoder ({name}) cannot be loaded: {why}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # what is masked is never read
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    return tokenizer, model.eval()
