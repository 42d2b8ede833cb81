"""The protocol of the scripts: a line of JSON for each line of JSON. The output of libraries goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def answer_lines(answer: Callable[[Any], Any]) -> int:
    """Answer until the input ends; the exit status."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
    return 0
