"""Peers, each in a process of their own environment, which answers a line of JSON for a line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import IO, Any, cast

from harness import peers_python

_FOLDER = Path(__file__).parent


class Peer:
    """A script of benchmarks/peers with these arguments, which ends with this process; what it prints goes to stderr."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._script = script
        self._process = subprocess.Popen(
            [peers_python(), str(_FOLDER / "peers" / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # It needs networks and turns.py from here; opq is not in its environment.
            env={**os.environ, "PYTHONPATH": str(_FOLDER)},
        )

    def ask(self, question: Any) -> Any:
        """What the script answers; RuntimeError where it ended instead."""
        print(json.dumps(question), file=cast(IO[str], self._process.stdin), flush=True)
        answer = cast(IO[str], self._process.stdout).readline()
        if not answer:
            raise RuntimeError(f"benchmarks/peers/{self._script} ended; what it printed tells why")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
