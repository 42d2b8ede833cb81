"""Bounds-checked reading of untrusted bytes, and variable-length integers."""

from __future__ import annotations

from opq.errors import FormatError

_LARGEST = 2**63 - 1


class ByteReader:
    """A position in bytes that never moves past their end.

    Args:
        data: The bytes.
        where: Name of this part of the file. Every failed read is a FormatError with this name.
    """

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self._data = memoryview(data)
        self._where = where
        self._at = 0

    def take(self, count: int) -> bytes:
        """Read the next `count` bytes; FormatError if there are fewer."""
        return bytes(self.view(count))

    def view(self, count: int) -> memoryview:
        """As `take`, without a copy."""
        if count > len(self._data) - self._at:
            raise FormatError(
                self._where, f"expected {count:,} bytes at {self._at:,}, but only {len(self._data) - self._at:,} are left"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> memoryview:
        """Read all remaining bytes. They are not copied, because thousands of weights may share them."""
        start, self._at = self._at, len(self._data)
        return self._data[start:]

    def varint(self, limit: int = _LARGEST) -> int:
        """Read a LEB128 integer.

        Args:
            limit: The largest allowed value.

        Raises:
            FormatError: The integer is above the limit, longer than 9 bytes, or not in its shortest form.
        """
        value = shift = 0
        while True:
            if self._at == len(self._data):
                self.view(1)  # which raises
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise FormatError(self._where, "an integer is longer than 9 bytes")
        if byte == 0 and shift > 7:
            raise FormatError(self._where, "an integer is not in its shortest form")
        if value > limit:
            raise FormatError(self._where, f"an integer must be at most {limit:,}, got {value:,}")
        return value

    def end(self) -> None:
        """Raise FormatError if bytes are left."""
        if self._at != len(self._data):
            raise FormatError(self._where, f"{len(self._data) - self._at:,} bytes too many at the end")


def varint(value: int) -> bytes:
    """`value` >= 0 as LEB128: seven bits per byte, lowest first, with the high bit set in every byte but the last."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
