"""From a state dict and a target to a plan, and to the bytes of a file."""

from opq.compression.compressing import Compressed, compress
from opq.compression.journal import work_path
from opq.compression.options import Options
from opq.compression.planning import plan
from opq.compression.tradeoffs import TradeoffPoint, tradeoff

__all__ = ["Compressed", "Options", "TradeoffPoint", "compress", "plan", "tradeoff", "work_path"]
