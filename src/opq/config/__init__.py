"""The request of a user as typed, frozen objects, which are checked when they are created.

    CompressionConfig(target=Ratio(20), exclude=("fc.*",), layers={"conv1.*": LayerConfig(sensitivity=4.0)})

Every function that compresses takes such a config, or the same settings as keywords (`ratio=20, exclude=["fc.*"]`), which
`as_config` converts to one. The rest of the library sees configs only, and parses nothing again.
"""

from opq.config.compression_config import AuxiliaryStorage, BatchNormForm, CompressionConfig, CostName, RoundingName, Speed
from opq.config.keywords import CompressionOptions, as_config, refuse_unknown, without_target
from opq.config.layer_config import LayerConfig, ScalesName
from opq.config.targets import Lossless, Ratio, Size, Target, TwoStage, parse_size, target_from_dict, target_to_dict

__all__ = [
    "AuxiliaryStorage",
    "BatchNormForm",
    "CompressionConfig",
    "CompressionOptions",
    "CostName",
    "LayerConfig",
    "Lossless",
    "Ratio",
    "RoundingName",
    "ScalesName",
    "Size",
    "Speed",
    "Target",
    "TwoStage",
    "as_config",
    "parse_size",
    "refuse_unknown",
    "target_from_dict",
    "target_to_dict",
    "without_target",
]
