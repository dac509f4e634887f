"""Attention of rows that hold one sample each, filled up on the right: causal and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import masking_utils


@contextmanager
def causal_alone() -> Iterator[None]:
    """Let transformers leave the mask to the attention kernel, where none is given.

    It would look for packed samples in the positions, which waits for the device at every step; and where that cannot
    be, as in the capture of a graph, it would write a mask out, which takes a slower kernel.
    """
    tracing, packed = masking_utils.is_tracing, masking_utils.find_packed_sequence_indices
    masking_utils.is_tracing = lambda tensor=None: tensor is not None and tracing(tensor)
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.is_tracing, masking_utils.find_packed_sequence_indices = tracing, packed
