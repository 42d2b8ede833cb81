"""Two forward passes side by side: of the dense network, and of the one that becomes its rounded form on the way.

Each layer is rounded when the second pass comes to it, and knows then what it takes in the dense network and what it takes
behind the layers rounded so far. Nothing is traced: the dense pass runs in a thread that waits at every layer.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from threading import Thread

import torch
from torch import Tensor, nn

from opq.errors import CalibrationError

Reconstruct = Callable[[str, Tensor, Tensor], None]
"""(layer, its input in the dense network, its input in the rounded one): changes the layer in the rounded network."""


class _Abandoned(Exception):  # noqa: N818 - it tells the dense pass to end, nothing went wrong there
    pass


class _DensePass(Thread):
    """A forward pass that offers the input of each layer and goes on when told to."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor) -> None:
        super().__init__(daemon=True)
        self._model, self._inputs = model, inputs
        self._offers: queue.Queue[tuple[str, Tensor] | None] = queue.Queue(1)
        self._answers: queue.Queue[bool] = queue.Queue(1)
        self._problem: BaseException | None = None
        self._seen: set[str] = set()
        self._handles = [
            layer.register_forward_pre_hook(lambda _, taken, name=name: self._offer(name, taken[0]))
            for name, layer in layers.items()
        ]

    def run(self) -> None:
        try:
            with torch.no_grad():
                self._model(self._inputs)
        except _Abandoned:
            pass
        except BaseException as error:  # the thread that waits raises it again
            self._problem = error
        finally:
            for handle in self._handles:
                handle.remove()
            self._offers.put(None)

    def input_of(self, name: str) -> Tensor:
        """The dense input of the next layer, which must be `name`."""
        offer = self._offers.get()
        if offer is None or offer[0] != name:
            raise CalibrationError(
                f"the network does not take the same way twice: expected layer {name!r} next, "
                f"got {'the end' if offer is None else repr(offer[0])}"
            ) from self._problem
        return offer[1]

    def end(self) -> None:
        """Wait for the end of the pass; CalibrationError when it comes to another layer first."""
        if (offer := self._offers.get()) is not None:
            self.go_on(False)
            raise CalibrationError(f"the network does not take the same way twice: expected its end, got layer {offer[0]!r}")
        self.join()

    def go_on(self, onward: bool = True) -> None:
        self._answers.put(onward)

    def _offer(self, name: str, taken: Tensor) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        self._offers.put((name, taken))
        if not self._answers.get():
            raise _Abandoned


def run_paired(
    dense: nn.Module, rounded: nn.Module, names: Mapping[str, nn.Module], inputs: Tensor, reconstruct: Reconstruct
) -> None:
    """Run both networks on `inputs`, rounding every layer of `names` in `rounded` when it is first reached.

    Raises CalibrationError when the two passes do not reach the same layers in the same order.
    """
    other = _DensePass(dense, {name: dense.get_submodule(name) for name in names}, inputs)
    seen: set[str] = set()

    def reach(name: str, taken: Tensor) -> None:
        if name not in seen:
            seen.add(name)
            reconstruct(name, other.input_of(name), taken)
            other.go_on()

    handles = [
        rounded.get_submodule(name).register_forward_pre_hook(lambda _, taken, name=name: reach(name, taken[0]))
        for name in names
    ]
    other.start()
    try:
        with torch.no_grad():
            rounded(inputs)
    except BaseException:
        if other.is_alive():
            other.go_on(False)
        raise
    finally:
        for handle in handles:
            handle.remove()
    other.end()
