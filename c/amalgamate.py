"""Write the C reader as one header and one source: `python c/amalgamate.py FOLDER` writes opq.h and opq.c."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "c", ROOT / "include", ROOT / "src" / "opq" / "codec" / "native")
_INCLUDE = re.compile(r'^#include "(.+)"\n', re.MULTILINE)


def amalgamate() -> str:
    """The source, each of our headers once and where it is included first."""
    done = {"opq.h"}

    def expand(path: Path) -> str:
        def included(match: re.Match[str]) -> str:
            name = match[1]
            if name in done:
                return ""
            done.add(name)
            return expand(next(folder / name for folder in FOLDERS if (folder / name).exists()))

        return _INCLUDE.sub(included, path.read_text())

    head = "/* opq: a reader of .opq files. Made by c/amalgamate.py; Apache-2.0. Link with -lz, or define OPQ_OWN_INFLATE. */\n"
    return head + '#include "opq.h"\n' + expand(ROOT / "c" / "opq.c")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "opq.c").write_text(amalgamate())
    (folder / "opq.h").write_text((ROOT / "include" / "opq.h").read_text())
