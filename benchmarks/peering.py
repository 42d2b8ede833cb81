"""Other compression tools, each in a process of a separate environment that answers a line of JSON with a line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import IO, Any, cast

from harness import peers_python

_FOLDER = Path(__file__).parent


class Peer:
    """A script of benchmarks/peers with these arguments. It ends with this process; its output goes to stderr."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._script = script
        self._process = subprocess.Popen(
            [peers_python(), str(_FOLDER / "peers" / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # It imports networks and turns.py from this folder; opq is not in its environment.
            env={**os.environ, "PYTHONPATH": str(_FOLDER)},
        )

    def ask(self, question: Any) -> Any:
        """The script's answer; RuntimeError if it ended instead."""
        try:
            print(json.dumps(question), file=cast(IO[str], self._process.stdin), flush=True)
            answer = cast(IO[str], self._process.stdout).readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"benchmarks/peers/{self._script} ended; see its output")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
