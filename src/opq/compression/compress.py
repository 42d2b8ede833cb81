"""compress(): encode a checkpoint under a plan, or search for the plan whose file meets a byte target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from opq.checkpoints import State, as_state
from opq.codec.file_writer import write
from opq.compression.analysis import CheckpointAnalysis, analyze, analyze_planned
from opq.compression.compressed_model import CompressedModel
from opq.compression.delta import compress_delta
from opq.compression.lossless import compress_losslessly
from opq.compression.planned_weight import PlannedWeight
from opq.compression.planning import guess_joint, guess_two_stage, joint_plan
from opq.compression.size_model import SizeModel
from opq.compression.workers import THREADS, Workers
from opq.config import CompressionConfig, CompressionOptions, Lossless, TwoStage, as_config
from opq.errors import TargetError
from opq.progress import Progress, logger, show_progress
from opq.rate_distortion import joint
from opq.rate_distortion.plan import Plan
from opq.rate_distortion.rate_control import BudgetSearch

# A file of at least the first fraction of the budget ends the search. Files after the first one aim at the second fraction.
_CLOSE_ENOUGH, _CLOSER_AIM = 0.995, 0.9985


def compress(
    source: Any,
    config: CompressionConfig | Plan | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    key: str | None = None,
    base: Any = None,
    progress: Progress | bool = False,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress a network to a file in memory.

    Large weights are read some rows at a time: memory is bounded by about 100 MB per core, a byte for each element of the
    weights that are encoded at the same time, the auxiliary tensors, and twice the size of the file.

    Args:
        source: A state dict of NumPy arrays or torch tensors, a torch module, or the path of a checkpoint.
        config: The target and all settings; or a plan, which is followed without changes; or None if `options` give the
            settings. With a byte target the size of the file is at most the target and at least 99.5% of it; it is smaller only
            if even the finest steps give fewer bytes.
        metadata: {text: text} to keep in the file if the source has no metadata.
        key: The key of the state dict in a source that has several, such as "params_ema".
        base: What the network was made from, such as the checkpoint before a finetuning: the path of a .opq file, or what
            `source` may be; or a sequence of one of these and of deltas, each made from what is before it. The result is then a
            delta, from which and from the base every tensor is restored bit for bit, and `source` may also be a .opq file,
            whose codes are kept. There are no other settings.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each tensor.
        options: The fields of a config as keywords, such as `ratio=20` and `exclude=["fc.*"]`.

    Returns:
        The compressed network, in memory.

    Raises:
        TypeError: A keyword is unknown, or `config` and `options` are both given.
        TargetError: The target cannot be reached.
        SourceError, SelectionError, WeightError: See `opq.plan`.
        PlanError: The plan was made for other names or shapes.
    """
    if base is not None:
        if config is not None or options:
            raise TypeError("compress() with base= keeps every bit, so it takes no config and no settings")
        return compress_delta(source, base, metadata=metadata, key=key, progress=progress)
    request = request_of(config, options)
    with show_progress(progress) as report:
        return compress_state(as_state(source, metadata, key), request, report)


def request_of(config: CompressionConfig | Plan | None, options: Mapping[str, Any]) -> CompressionConfig | Plan:
    """The config or plan that the arguments of `compress` describe; TypeError if they contradict each other."""
    if isinstance(config, Plan) and options:
        raise TypeError(f"compress() takes a plan or keywords, got both a plan and {min(options)!r}")
    return config if isinstance(config, Plan) else as_config(config, options, "compress")


def compress_state(
    state: State, request: CompressionConfig | Plan, report: Progress, workers: Workers = THREADS
) -> CompressedModel:
    """As `compress`, of an opened checkpoint.

    Args:
        state: The checkpoint.
        request: The config or the plan.
        report: Called after each tensor.
        workers: They measure and encode the weights.

    Raises:
        TargetError: The target cannot be reached, or is lossless and `workers` are not this process's threads.
    """
    if isinstance(request, Plan):
        analysis = analyze_planned(state, request, report, workers)
        return with_warnings(analysis, _encode(analysis, request, report, workers))
    if isinstance(request.target, Lossless):
        if workers is not THREADS:
            raise TargetError("lossless compression runs on one machine; leave ray out, or give a ratio or a size")
        return compress_losslessly(state, request, report)
    analysis = analyze(state, request, report=report, workers=workers)
    size_model = SizeModel.of(analysis, request)
    if isinstance(request.target, TwoStage):
        return with_warnings(analysis, _encode(analysis, guess_two_stage(size_model, request.target)[1], report, workers))
    return with_warnings(analysis, fit(size_model, request, report, workers))


def fit(size_model: SizeModel, config: CompressionConfig, report: Progress, workers: Workers = THREADS) -> CompressedModel:
    """Encode with different lambdas until a file is just within the budget.

    Args:
        size_model: That of the checkpoint under `config`, before any excerpt was encoded.
        config: The settings, with a Ratio or a Size as target.
        report: Called after each tensor.
        workers: They encode the weights.

    Returns:
        The largest file within the budget.

    Raises:
        TargetError: The target cannot be reached.
    """
    analysis, target = size_model.analysis, config.target
    budget = config.budget(analysis.dense_bytes) or 0
    size_model, plan = guess_joint(size_model, target, budget)
    bounds = joint.lambda_bounds(size_model.layers, size_model.family)
    search: BudgetSearch[CompressedModel] = BudgetSearch(budget, close=_CLOSE_ENOUGH, aim=_CLOSER_AIM, bounds=bounds)
    first = plan.lmbda or bounds[1]
    last: CompressedModel

    def encode(lmbda: float) -> tuple[CompressedModel, int]:
        nonlocal last
        last = _encode(analysis, plan if lmbda == first else joint_plan(size_model, target, lmbda), report, workers)
        logger.debug("lambda %.4g gives %d bytes, the budget is %d", lmbda, last.file_bytes, budget)
        return last, last.file_bytes

    def predict(aim: float) -> float:
        nonlocal size_model
        size_model = size_model.learned(plan.layers, last.layout.weight_bytes())
        return size_model.lambda_for(aim)

    search.run(first, encode, predict=predict)
    if search.best is None:
        smallest = last.file_bytes
        raise TargetError.out_of_reach(budget, smallest, max(smallest, analysis.dense_bytes), analysis.dense_bytes)
    return search.best


def with_warnings(analysis: CheckpointAnalysis, compressed: CompressedModel) -> CompressedModel:
    """The same network, after a warning that names each weight that became all zero."""
    for name, count in compressed.layout.nonzero.items():
        if count == 0 and analysis.statistics[name].laplace_scale > 0.0:
            logger.warning("weight %r became all zero; give it a higher sensitivity in layers, or exclude it", name)
    return compressed


def _encode(analysis: CheckpointAnalysis, plan: Plan, report: Progress, workers: Workers) -> CompressedModel:
    weights = {name: PlannedWeight(analysis.state, name, layer) for name, layer in plan.layers.items()}
    layout = write(
        weights,
        packs=analysis.packs,
        metadata=analysis.state.metadata,
        speed=plan.speed,
        report=report,
        encoded=workers.encode(weights),
    )
    return CompressedModel(plan, layout)
