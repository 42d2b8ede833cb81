"""Make the helpers of the codec's tests importable, which put files together."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "codec"))
