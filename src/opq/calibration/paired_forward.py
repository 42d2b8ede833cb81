"""Forward passes of the dense network and of its quantized copy, side by side.

Each layer of the copy is quantized when the copy's forward pass first reaches it. At that moment its input in the dense network
and its input behind the layers quantized so far are both known. No graph is traced: the dense pass runs in a separate thread,
which waits at every layer.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Mapping
from threading import Thread

import torch
from torch import Tensor, nn

from opq.errors import CalibrationError

Reconstruct = Callable[[str, Tensor, Tensor], None]
"""(layer, its input in the dense network, its input in the quantized one) -> None: quantizes the layer in place."""

_DIFFERENT_ORDER = (
    "dense and quantized forward passes called layers in a different order (dynamic control flow is not supported): expected"
)


class _Abandoned(Exception):  # noqa: N818 - it ends the dense pass on purpose, it reports no error
    pass


class _DensePass(Thread):
    """A forward pass that hands over the input of each layer, then waits until it may continue."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor) -> None:
        super().__init__(daemon=True)
        self._model, self._inputs = model, inputs
        self._offers: queue.Queue[tuple[str, Tensor] | None] = queue.Queue(1)
        self._answers: queue.Queue[bool] = queue.Queue(1)
        self._problem: BaseException | None = None
        self._seen: set[str] = set()
        self._handles = [
            layer.register_forward_pre_hook(lambda _, args, name=name: self._offer(name, args[0]))
            for name, layer in layers.items()
        ]

    def run(self) -> None:
        try:
            with torch.no_grad():
                self._model(self._inputs)
        except _Abandoned:
            pass
        except BaseException as error:  # input_of raises it again in the other thread
            self._problem = error
        finally:
            for handle in self._handles:
                handle.remove()
            self._offers.put(None)

    def input_of(self, name: str) -> Tensor:
        """The dense input of layer `name`, which must be the next one that the pass reaches."""
        offer = self._offers.get()
        if offer is None or offer[0] != name:
            raise CalibrationError(
                f"{_DIFFERENT_ORDER} layer {name!r}, got {'the end' if offer is None else repr(offer[0])}"
            ) from self._problem
        return offer[1]

    def finish(self) -> None:
        """Wait for the end of the pass; raise CalibrationError if it reaches another layer first."""
        if (offer := self._offers.get()) is not None:
            self.resume(False)
            raise CalibrationError(f"{_DIFFERENT_ORDER} the end, got layer {offer[0]!r}")
        self.join()

    def resume(self, onward: bool = True) -> None:
        """Let the waiting pass continue, or abandon it."""
        self._answers.put(onward)

    def _offer(self, name: str, layer_input: Tensor) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        self._offers.put((name, layer_input))
        if not self._answers.get():
            raise _Abandoned


def run_paired(dense: nn.Module, quantized: nn.Module, names: Iterable[str], inputs: Tensor, reconstruct: Reconstruct) -> None:
    """Run both networks on `inputs`, and quantize each layer of `quantized` when it is first reached.

    Args:
        dense: The dense network.
        quantized: A copy of it, which `reconstruct` changes.
        names: The names of the layers to quantize.
        inputs: (samples, ...).
        reconstruct: Called once per layer that is reached.

    Raises:
        CalibrationError: The two passes do not reach the same layers in the same order.
    """
    names = list(names)
    dense_pass = _DensePass(dense, {name: dense.get_submodule(name) for name in names}, inputs)
    seen: set[str] = set()

    def reach(name: str, layer_input: Tensor) -> None:
        if name not in seen:
            seen.add(name)
            reconstruct(name, dense_pass.input_of(name), layer_input)
            dense_pass.resume()

    handles = [
        quantized.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: reach(name, args[0]))
        for name in names
    ]
    dense_pass.start()
    try:
        with torch.no_grad():
            quantized(inputs)
    except BaseException:
        if dense_pass.is_alive():
            dense_pass.resume(False)
        raise
    finally:
        for handle in handles:
            handle.remove()
    dense_pass.finish()
