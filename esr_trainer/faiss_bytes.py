"""FAISS indexes from bytes that may be anyone's; free of torch, since the server reads its index with it."""

import faiss
import numpy as np


def deserialize(content: np.ndarray) -> faiss.Index:
    """An index from bytes, without a second copy; FAISS may allocate no more than the bytes could hold."""
    faiss.set_deserialization_vector_byte_limit(max(2 * len(content), 1 << 20))
    faiss.set_deserialization_loop_limit(max(len(content), 1 << 20))
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        chunk = content[position : position + size].tobytes()
        position += len(chunk)
        return chunk

    return faiss.read_index(faiss.PyCallbackIOReader(read, 1 << 20))
