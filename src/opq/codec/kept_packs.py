"""Decoded packs of auxiliary tensors, each kept until every one of its tensors has been read."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from opq.errors import FormatError

Pack = dict[str, NDArray[np.generic]]


class KeptPacks:
    """Packs by the number of their section. Each is decoded once, by one thread, even if it is damaged.

    Args:
        decode: Decodes the pack of a section; FormatError if it is damaged.
    """

    def __init__(self, decode: Callable[[int], Pack]) -> None:
        self._decode = decode
        self._lock = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}
        self._packs: dict[int, tuple[Pack, set[str]]] = {}
        self._problems: dict[int, FormatError] = {}

    def tensor(self, section: int, name: str) -> NDArray[np.generic]:
        """A tensor of a pack, which shares no memory with what is kept; FormatError if the pack is damaged."""
        with self._lock:
            lock = self._locks.setdefault(section, threading.Lock())
        with lock:
            if section in self._problems:
                raise self._problems[section].with_traceback(None)
            if section not in self._packs:
                try:
                    pack = self._decode(section)
                except FormatError as error:
                    self._problems[section] = error
                    raise
                self._packs[section] = pack, set(pack)
            pack, unread = self._packs[section]
            unread.discard(name)
            if unread:
                return pack[name].copy()
            del self._packs[section]
            return pack[name]
