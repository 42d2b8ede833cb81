"""Curvature: what rounding errors in each weight cost, measured by the gradients of the weight along random directions.

With u a random vector and y the outputs of the network, the gradient G of u . y with respect to a weight, seen as a matrix, has
E[G_ij^2] equal to the curvature of the outputs' error along element ij, if the covariance of u is that error's curvature
(`opq.calibration.outputs.random_directions`). Seen as a Kronecker product (J. Martens, R. Grosse, 2015), the curvature of row i
and columns j, k is g_i R_jk, with g_i = E |G_i|^2 and R = E[G^T G] / trace. Gradients need no knowledge of the operator: they
serve convolutions, recurrent weights, embeddings and heads alike, and a weight with two roles has the sum of both curvatures.
Directions of different samples are independent, so the gradient of a batch has as expectation the sum over its samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opq.calibration.inputs import Batch
from opq.calibration.outputs import is_next_token, magnitudes_of, outputs_of, random_directions
from opq.progress import Progress

WIDEST = 2048
"""Columns of different blocks of this many do not compensate each other: a factorization takes the cube of their number."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """The curvature of the outputs' error in one weight.

    Args:
        rows: float64 (o,) sum of squared gradients of each row, >= 0.
        moments: For each block of at most WIDEST columns, float64 (k, k): the sum over rows and gradients of the products of
            two columns' gradients.
        transposed: Whether rows and columns are those of the transposed matrix, as in a weight stored as (inputs, outputs).
    """

    rows: Tensor
    moments: tuple[Tensor, ...]
    transposed: bool = False

    def plus(self, other: Curvature) -> Curvature:
        """The curvature of equal weights: the sum of both."""
        moments = tuple(one + two for one, two in zip(self.moments, other.moments, strict=True))
        return Curvature(self.rows + other.rows, moments, self.transposed)

    @property
    def mean(self) -> float:
        """The mean over all elements."""
        return float(self.rows.sum()) / (len(self.rows) * sum(map(len, self.moments)))


def matrix_of(weight: Tensor, transposed: bool) -> Tensor:
    """A weight as a matrix: axis 0 and all others, or the other way round."""
    matrix = weight.reshape(len(weight), -1)
    return matrix.T if transposed else matrix


def measure_curvature(
    model: nn.Module, groups: Sequence[Sequence[Batch]], *, seed: int = 0, report: Progress | None = None
) -> dict[str, Curvature]:
    """Measure the curvature of every parameter with at least two dimensions that has a gradient.

    Args:
        model: The network, in evaluation mode and float32. Its values and `requires_grad` flags are the same afterwards.
        groups: Groups of batches; each group gives one gradient.
        seed: Of the random directions, >= 0.
        report: Called after each group.

    Returns:
        {parameter: its curvature}. A parameter under several names has it under the first one.

    Raises:
        CalibrationError: The network returns no tensor of floating point.
    """
    generator = torch.Generator().manual_seed(seed)
    swapped = _transposed(model)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    sums: dict[str, Curvature] = {}
    with torch.no_grad():
        magnitudes = magnitudes_of(outputs_of(model, groups[0][0]))
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        for number, group in enumerate(groups, 1):
            model.zero_grad(set_to_none=True)
            for batch in group:
                _add_gradient(model, batch, magnitudes, generator)
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    found = _of_gradient(parameter.grad, name in swapped)
                    sums[name] = sums[name].plus(found) if name in sums else found
            if report is not None:
                report("measuring curvature", number, len(groups))
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(requires_grad[name])
            parameter.grad = None
    return {name: found for name, found in sums.items() if float(found.rows.sum()) > 0.0}


def _add_gradient(model: nn.Module, batch: Batch, magnitudes: list[float], generator: torch.Generator) -> None:
    # A kernel of cuDNN does not run backward in evaluation mode, and the fast path of attention has no gradients.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        outputs = outputs_of(model, batch)
        distributions = is_next_token(batch, outputs)
        detached = [output.detach() for output in outputs]
        directions = random_directions(detached, magnitudes, generator, distributions=distributions)
        reached = [pair for pair in zip(outputs, directions, strict=False) if pair[0].requires_grad]
        if reached:
            torch.autograd.backward([output for output, _ in reached], [direction for _, direction in reached])


def _of_gradient(gradient: Tensor, transposed: bool) -> Curvature:
    matrix = matrix_of(gradient.to_dense() if gradient.is_sparse else gradient, transposed).float()
    rows = torch.linalg.vector_norm(matrix, dim=1).double().square().cpu()
    moments = tuple((block.T @ block).double().cpu() for block in torch.split(matrix, WIDEST, 1))
    return Curvature(rows, moments, transposed)


def _transposed(model: nn.Module) -> set[str]:
    """Names of the weights whose inputs are axis 0: of transposed convolutions, and of the Conv1D of transformers."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, transposed) or type(module).__name__ == "Conv1D"
    }


def total(curvatures: Mapping[str, Curvature], names: Sequence[str]) -> Curvature | None:
    """The sum of the curvatures of equal weights; None if none of them has one."""
    found = [curvatures[name] for name in names if name in curvatures]
    result = None
    for curvature in found:
        result = curvature if result is None else result.plus(curvature)
    return result
