"""Verify a file, or a delta with its base."""

from __future__ import annotations

import os
from typing import Any

from opq.checkpoints.opq_state import open_base
from opq.codec import verify as codec_verify
from opq.codec.verify import Verification
from opq.progress import Progress


def verify(source: str | os.PathLike[str] | bytes, *, base: Any = None, progress: Progress | bool = False) -> Verification:
    """Verify every byte of a file, as `opq.codec.verify.verify` documents.

    Args:
        source: A path, or the file's bytes.
        base: Of a delta, what it was made from, as in `opq.compress`. Without it only checksums and header are verified.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Raises:
        FormatError: The file is not valid; the message names the tensor.
        SourceError: A path cannot be read, or the base is another one than that of the delta.
    """
    if base is None:
        return codec_verify.verify(source, progress=progress)
    with open_base(base) as state:
        return codec_verify.verify(source, state, progress=progress)
