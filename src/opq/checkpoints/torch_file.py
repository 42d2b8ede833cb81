"""Checkpoints in PyTorch files, which are read without running code in them."""

from __future__ import annotations

import argparse
import codecs
import collections
import contextlib
import datetime
import pathlib
import pickle
import re
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opq.checkpoints.file_kind import check_memory
from opq.checkpoints.wrappers import find_state_dict
from opq.errors import MissingExtraError, SourceError

# Objects of these classes take no more memory than their pickle, unlike bytes(10**12) or a Fraction. That does not hold for
# np.ndarray below, nor for bytearray, which torch.load always accepts.
_PLAIN = (
    argparse.Namespace,
    types.SimpleNamespace,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    collections.OrderedDict,
    collections.Counter,
    dict,
    list,
    tuple,
    set,
    int,
    float,
    frozenset,
    slice,
    complex,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
)
_LIGHTNING = (
    "pytorch_lightning.utilities.parsing",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
)


def read_torch_file(path: Path, key: str | None = None) -> dict[str, Any]:
    """Read the tensors of a file that torch.save wrote, with weights_only=True.

    Args:
        path: The file.
        key: As in `find_state_dict`.

    Returns:
        {name: torch tensor}.

    Raises:
        SourceError: The file is not a checkpoint of tensors and harmless objects, or has none or several state dicts.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "torch") from None
    try:
        # A path that ends in .safetensors makes torch.load read safetensors; an open file does not.
        with warnings.catch_warnings(), _harmless(torch), path.open("rb") as file:
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.findall(r"(?:GLOBAL|[Cc]lass|function) ([\w.]+\.[\w.]+)", str(error))
        other = f" ({names[0][:80]})" if names else ""
        raise SourceError(
            path,
            f"not a checkpoint of plain tensors: it holds other objects{other}, which could run code when loaded; save its "
            "state_dict",
        ) from None
    except Exception as error:  # the exceptions of torch.load are not documented
        reason = " ".join(str(error).split(". ")[0].split()).strip("'\"")[:200]
        raise SourceError(
            path, f"not a PyTorch checkpoint, or a damaged one ({type(error).__name__}: {reason}); save the state_dict again"
        ) from None
    tensors = find_state_dict(content, path, key)
    # A tensor may repeat the elements of a small storage.
    check_memory(path, ((name, tensor.nbytes) for name, tensor in tensors.items()))
    return tensors


@contextlib.contextmanager
def _harmless(torch: Any) -> Iterator[None]:
    """A context in which torch.load also accepts classes whose construction runs no code."""
    if torch.__version__ < (2, 6):  # it accepts no pairs of an object and a name
        yield
        return
    arrays: Any = np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        np.ndarray,
        np.dtype,
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
        *((function, f"numpy.{core}.multiarray.{function.__name__}") for core in ("core", "_core") for function in arrays),
        (codecs.encode, "_codecs.encode"),
        *_PLAIN,
        (_Dict, "collections.defaultdict"),
        *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
        *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
        *((_Dict, f"{module}.AttributeDict") for module in _LIGHTNING),
    ]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:  # torch's own context would also remove those that the user had added
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class _Dict:
    """Makes a plain dict in place of a defaultdict or of Lightning's AttributeDict, which torch.load cannot fill."""

    def __new__(cls, *_: object) -> Any:
        return collections.OrderedDict()
