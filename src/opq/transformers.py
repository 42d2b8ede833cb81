"""Coded weights behind from_pretrained of transformers; importing this module registers the quantization method "opq".

    import opq.transformers
    model = AutoModel.from_pretrained("bert-small")      # a folder that opq.save_pretrained wrote
    model.save_pretrained("elsewhere")                   # the same coded weights

    config = opq.transformers.OpqConfig(ratio=8)
    model = AutoModel.from_pretrained("bert", quantization_config=config)     # compresses the network after it is loaded

Weights are decoded while they are loaded, each to the dtype and on the device that it gets, and the network is an ordinary one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opq.codec.file_reader import OpqFile
from opq.compression.compress import compress
from opq.config import as_config
from opq.errors import FormatError, MissingExtraError
from opq.progress import logger
from opq.reporting.coded_folder import CODED, METHOD, coded
from opq.torch import decode_tensor
from opq.version import __version__

try:
    import torch
    from torch import Tensor, nn
    from transformers.core_model_loading import ConversionOps, WeightConverter, revert_weight_conversion
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError:
    raise MissingExtraError("opq.transformers", "transformers") from None

__all__ = ["OpqConfig", "OpqQuantizer"]


@register_quantization_config(METHOD)
class OpqConfig(QuantizationConfigMixin):
    """What config.json says of coded weights; or how a network is compressed that is loaded from dense weights.

    Args:
        version: The version of opq that wrote the weights.
        options: The fields of a `CompressionConfig`, such as `ratio=8`, to compress a network after it is loaded.
    """

    def __init__(self, version: str = __version__, **options: Any) -> None:
        options.pop("quant_method", None)
        self.quant_method = METHOD  # type: ignore[assignment]
        self.version = version
        self.options = options

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"quant_method": METHOD, "version": self.version}


@register_quantizer(METHOD)
class OpqQuantizer(HfQuantizer):
    """Decodes weights while they are loaded, and saves again those that are unchanged.

    Args:
        quantization_config: The settings.
        options: Further arguments of transformers.

    Raises:
        TargetError: A network is loaded from dense weights, and the settings have no target.
    """

    quantization_config: OpqConfig
    requires_calibration = False

    def __init__(self, quantization_config: OpqConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.files: dict[str, Tensor] = {}
        self.merged: list[Tensor] = []
        self._conversions: list[Any] = []
        self._coded_conversions: dict[int, Any] = {}
        if not self.pre_quantized:
            self._config = as_config(None, quantization_config.options, "OpqConfig")

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """The dtype to cast a stored tensor to: none for the bytes of a file, which keeps the dtype for what it decodes."""
        for operation in getattr(converter, "operations", ()):
            if isinstance(operation, _Decode):
                operation.dtype = dtype
                return None
        return super().get_new_dtype(converter, param, dtype)

    def update_weight_conversions(self, weight_conversions: list[Any], model: nn.Module) -> list[Any]:
        """Conversions that decode: each of the network's own that merges or splits, and one for all other weights.

        The first take dense tensors too, since only some of the weights that are merged may be coded.
        """
        if not self.pre_quantized:
            return weight_conversions
        self._conversions = list(weight_conversions)
        for conversion in weight_conversions:
            if isinstance(conversion, WeightConverter):
                sources = [f"{source}(?:{CODED})?" for source in conversion._original_source_patterns]
                operations = [_Decode(self), *conversion.operations]
                copy = conversion.copy(sources, conversion._original_target_patterns, operations=operations, force_cpu=True)
                self._coded_conversions[id(conversion)] = copy
        alone = WeightConverter([CODED], "", [_Decode(self)], force_cpu=True)
        return [*(self._coded_conversions.get(id(conversion), conversion) for conversion in weight_conversions), alone]

    def _process_model_after_weight_loading(self, model: Any, **_arguments: Any) -> Any:
        if self.pre_quantized:
            self._conversions = [conversion for conversion in self._conversions if self._was_used(conversion)]
            model._weight_conversions = []  # `get_state_dict_and_metadata` reverts them
        else:
            self._compress(model)
        return model

    def _was_used(self, conversion: Any) -> bool:
        return bool(self._coded_conversions.get(id(conversion), conversion).was_used())

    def _compress(self, model: Any) -> None:
        """Compress a loaded network, and load the result."""
        used = model._weight_conversions or []
        if not any(isinstance(conversion, WeightConverter) for conversion in used):  # they would split files
            self._conversions = used
        model._weight_conversions = []
        tied = set(model.all_tied_weights_keys)
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        with OpqFile(compress(state, self._config).data) as file, torch.no_grad():
            for name, tensor in state.items():
                if file.entry(name).is_weight:
                    self.files[name] = torch.from_numpy(coded(file, name)[1].copy())
                tensor.copy_(decode_tensor(file, name))

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What save_pretrained writes: the files of unchanged weights, and all other tensors as they are."""
        state = dict(model.state_dict())
        kept = {}
        for name, file in self.files.items():
            if name in state and not state[name].is_meta and torch.equal(_decoded(file, state[name].dtype), state[name].cpu()):
                state[name] = kept[name] = file
        lost = [name for name in self.files if name not in kept]
        for name, source in model.all_tied_weights_keys.items():
            if source in kept:
                state.pop(name, None)
        model._weight_conversions = self._conversions
        try:
            renamed = revert_weight_conversion(model, state)
        finally:
            model._weight_conversions = []
        files = {id(file) for file in kept.values()}
        result = {name + CODED if id(tensor) in files else name: tensor for name, tensor in renamed.items()}
        if lost := [*lost, *self._keep_merged(result, f"{model.base_model_prefix}.")]:
            logger.warning("%s is saved dense, as %d others: they changed", lost[0], len(lost) - 1)
        return result, {}

    def _keep_merged(self, state: dict[str, Tensor], prefix: str) -> list[str]:
        """Replace weights that were merged, such as those of experts, by their files, if they are unchanged.

        Args:
            state: {name in the checkpoint: tensor}, which is changed.
            prefix: What names in the checkpoint of a network with a head have before those of the network without.

        Returns:
            The names of the others.
        """
        lost = []
        for file in self.merged:
            name, weight = _read(file)
            found = next((key for key in (name, name.removeprefix(prefix), prefix + name) if key in state), None)
            if found is None or state[found].is_meta or not torch.equal(weight.to(state[found].dtype), state[found].cpu()):
                lost.append(name)
            else:
                del state[found]
                state[found + CODED] = file
        return lost

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        model._weight_conversions = self._conversions
        return model if dtype is None else model.to(dtype)

    def is_serializable(self) -> bool:
        """Whether the network can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the network can be trained: its weights are dense."""
        return True


class _Decode(ConversionOps):
    """Decodes the files of weights, and gives them to the quantizer.

    Args:
        quantizer: The quantizer, of which copies of this operation are not copies.
    """

    def __init__(self, quantizer: OpqQuantizer, dtype: torch.dtype | None = None) -> None:
        self.quantizer, self.dtype = quantizer, dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> _Decode:
        return _Decode(self.quantizer, self.dtype)

    @property
    def reverse_op(self) -> ConversionOps:
        """Not used: `OpqQuantizer.get_state_dict_and_metadata` reverts what was loaded."""
        raise NotImplementedError

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **context: Any
    ) -> dict[str, Any]:
        """Decode.

        Args:
            input_dict: {pattern of names: files, each uint8 (bytes,), and other tensors}.
            source_patterns: Not used.
            target_patterns: Not used.
            context: `full_layer_name`, the name of the parameter; and others that are not used.

        Raises:
            FormatError: A file is damaged, or not of one weight.
        """
        name = context["full_layer_name"]
        if list(input_dict) == [CODED]:
            (file,) = input_dict[CODED]
            self.quantizer.files[name] = file
            return {name: _decoded(file, self.dtype)}
        self.quantizer.merged.extend(tensor for tensors in input_dict.values() for tensor in tensors if _is_file(tensor))
        return {pattern: [self._dense(tensor) for tensor in tensors] for pattern, tensors in input_dict.items()}

    def _dense(self, tensor: Tensor) -> Tensor:
        if _is_file(tensor):
            return _decoded(tensor, self.dtype)
        return tensor if self.dtype is None else tensor.to(self.dtype)


def _is_file(tensor: Tensor) -> bool:
    return tensor.dtype == torch.uint8 and tensor.ndim == 1


def _decoded(file: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The weight of a file of one, in a dtype, or its own."""
    return _read(file, dtype)[1]


def _read(file: Tensor, dtype: torch.dtype | None = None) -> tuple[str, Tensor]:
    """The name in the checkpoint and the weight of a file of one."""
    with OpqFile(np.asarray(file.cpu()).tobytes()) as opened:
        names = list(opened)
        if len(names) != 1:
            raise FormatError("file", f"it must hold one weight, got {len(names)} tensors")
        return names[0], decode_tensor(opened, names[0], dtype)
