from typing_extensions import Buffer

def crc32(data: Buffer, start: int = 0, /) -> int: ...
def encode_codes(codes: Buffer, outputs: int, inputs: int, positions: int, width: int, first: int, /) -> bytes: ...
def decode_codes(jobs: list[tuple[bytes | memoryview, memoryview, int, int, int, int, int]], taken: Buffer, /) -> int: ...
def encode_plane(plane: Buffer, above: Buffer, /) -> bytes: ...
def decode_plane(data: Buffer, above: Buffer, plane: Buffer, /) -> bool: ...
def fast_count(
    rows: int,
    columns: int,
    row_classes: Buffer,
    column_classes: Buffer,
    contexts: int,
    base: int,
    trellis: int,
    lowest: int,
    symbols: Buffer,
    counts: Buffer,
    /,
) -> None: ...
def fast_encode(
    rows: int,
    columns: int,
    row_classes: Buffer,
    column_classes: Buffer,
    contexts: int,
    base: int,
    trellis: int,
    lowest: int,
    symbols: Buffer,
    shares: Buffer,
    /,
) -> bytes: ...
def fast_decode(
    rows: int,
    columns: int,
    row_classes: Buffer,
    column_classes: Buffer,
    contexts: int,
    base: int,
    trellis: int,
    lowest: int,
    stream: Buffer,
    tables: Buffer,
    values: Buffer,
    size: int,
    sets: Buffer,
    output: Buffer,
    /,
) -> bool: ...
def fast_tables(shares: Buffer, tables: Buffer, /) -> None: ...
def split_words(words: Buffer, size: int, rotated: bool, planes: Buffer, /) -> None: ...
def sum_groups(block: Buffer, sums: Buffer, /) -> None: ...
def count_groups(block: Buffer, tables: Buffer, counts: Buffer, /) -> None: ...
def encode_block(block: Buffer, tables: Buffer, shares: Buffer, /) -> bytes: ...
def merge_blocks(blocks: list[bytes | memoryview], rotated: bool, words: Buffer, /) -> str | None: ...
def changed_bits(base: Buffer, new: Buffer, size: int, /) -> int: ...
def subtract_words(base: Buffer, new: Buffer, size: int, is_float: bool, shift: int, differences: Buffer, /) -> None: ...
def add_words(base: Buffer, differences: Buffer, size: int, is_float: bool, shift: int, output: Buffer, /) -> int: ...
def difference_symbols(differences: Buffer, symbols: Buffer, /) -> None: ...
def count_differences(
    keys: Buffer,
    ends: Buffer,
    row_classes: Buffer,
    column_classes: Buffer,
    key_classes: Buffer,
    symbols: Buffer,
    counts: Buffer,
    /,
) -> None: ...
def difference_contexts(
    keys: Buffer,
    ends: Buffer,
    row_classes: Buffer,
    column_classes: Buffer,
    key_classes: Buffer,
    base: int,
    count: int,
    contexts: Buffer,
    sizes: Buffer,
    /,
) -> None: ...
def sum_differences(
    keys: Buffer,
    ends: Buffer,
    row_classes: Buffer,
    column_classes: Buffer,
    key_classes: Buffer,
    symbols: Buffer,
    table: Buffer,
    factors: Buffer,
    largest: float,
    row_sums: Buffer,
    column_sums: Buffer,
    /,
) -> None: ...
def sort_symbols(contexts: Buffer, places: Buffer, symbols: Buffer, lines: Buffer, back: bool, /) -> None: ...
def follow_trellis(numbers: Buffer, columns: int, /) -> None: ...
def write_raw_bits(differences: Buffer, symbols: Buffer, /) -> bytes: ...
def read_raw_bits(symbols: Buffer, data: Buffer, differences: Buffer, /) -> int: ...
