"""The engine, the precision and the batch size of `auto`: the fastest for a run, measured on its first images.

If the run has fewer than `trials.MIN_ROUNDS` rounds, the model runs as it is, and nothing is measured. Otherwise the model is timed, then
the engines, those that are built fastest first, as long as building them takes a small share of the time of the run. An engine that fails,
or whose outputs do not agree with the float32 model, is left out. Of the others, the one that takes the shortest time for the run, building
included, is selected. Where the batch size is open, the model is first timed with batches of double the size, as long as that makes it
faster and fits into memory. Measurements are remembered (`measurements.py`), so that the next run need not repeat them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import VitrailError
from .compiled import AUTO, ENGINES, NUM_CHECKED, PRECISIONS, CompiledModel, Runtime, precision_of
from .measurements import read_measurements, subject_of, write_measurements
from .trials import MIN_GAIN, Trials, Workload, build_seconds

# By device, the precisions that `auto` may choose besides that of the weights, with the smallest cosine similarity to float32 of any image.
# CPUs that multiply in float16 do so in bfloat16
AUTO_PRECISIONS = {"cpu": {"bfloat16": 0.999, "int8": 0.99}, "cuda": {"bfloat16": 0.999, "float16": 0.999}}


@dataclass(frozen=True)
class Selection:
    """The selected engine, precision and batch size.

    batch_size: None if it is not open.
    compiled: the model that they have compiled; None if nothing was built.
    report: one line about the measurements; empty if there are none.
    """

    runtime: Runtime
    batch_size: int | None = None
    compiled: CompiledModel | None = None
    report: str = ""


def select_runtime(
    module: nn.Module,
    candidates: Sequence[Runtime],
    workload: Workload,
    sample: Callable[[int], torch.Tensor | None],
    *,
    calibration: Callable[[], torch.Tensor | None] = lambda: None,
    is_strict: bool = False,
) -> Selection:
    """Return the fastest of some runtimes for a run; see the docstring of this file.

    Args:
        module: see `CompiledModel`.
        candidates: from `find_candidates`.
        sample: returns up to a number of the images, (N, C, H, W), or None if no image can be used, and then nothing is measured.
        calibration: returns the images that int8 is calibrated on.
        is_strict: require the agreement of AUTO_PRECISIONS.
    """
    if workload.is_small or (len(candidates) == 1 and workload.max_batch_size is None):
        return Selection(candidates[0])
    images = sample(max(workload.batch_size, NUM_CHECKED))
    if images is None:
        return Selection(candidates[0])
    device = next(module.parameters()).device.type
    is_open = workload.max_batch_size is not None
    batch_size = None if is_open else workload.batch_size
    subject = subject_of(module, images.shape, batch_size=batch_size, num_streams=workload.num_streams)
    remembered = read_measurements(subject)
    if is_open and remembered is not None:
        workload = replace(workload, batch_size=remembered.batch_size or workload.batch_size, max_batch_size=None)
    trials = Trials(
        module,
        workload,
        images,
        calibration=calibration,
        min_cosine=AUTO_PRECISIONS.get(device, {}) if is_strict else {},
        remembered=[] if remembered is None else remembered.measurements,
    )
    for candidate in candidates:
        trials.run(candidate)
    selection = _select(trials, candidates, is_open)
    if trials.num_new and not trials.is_cut:
        write_measurements(subject, trials.found.values(), batch_size=trials.workload.batch_size)
    return selection


def begun_runtime(module: nn.Module, runtime: Runtime, settings: Mapping[str, Any]) -> Runtime | None:
    """Return the runtime that a run was begun with, according to its settings, if it is one that `runtime` leaves open."""
    precision, engine = settings.get("precision"), settings.get("engine")
    if runtime.engine not in (AUTO, engine) or (runtime.precision or precision_of(module)) not in (AUTO, precision):
        return None
    return Runtime(precision, engine) if precision in PRECISIONS and engine in list(ENGINES) else None


def find_candidates(module: nn.Module, runtime: Runtime, *, one_size: bool = True, calibrates: bool = False) -> list[Runtime]:
    """Return the runtimes that `runtime` leaves open: the module as it is, if it is one of them, then those that are built fastest.

    Args:
        one_size: whether all images have the same height and width; otherwise engines that compile for a size are left out, if possible.
        calibrates: whether there are images to calibrate int8 on.

    Raises VitrailError if there are none.
    """
    own, device = precision_of(module), next(module.parameters()).device.type
    auto = [own, *(precision for precision in AUTO_PRECISIONS.get(device, {}) if calibrates or precision != "int8")]
    precisions = dict.fromkeys(auto) if runtime.precision == AUTO else (runtime.precision or own,)
    names = list(ENGINES) if runtime.engine == AUTO else [runtime.engine]
    able = [
        Runtime(precision, name)
        for precision in precisions
        for name in names
        if precision in ENGINES[name].precisions and device in ENGINES[name].devices
    ]
    if not able:
        raise VitrailError(f"no engine runs a model in {' or '.join(precisions)} on {device}: choose another precision.")
    if not one_size:
        able = [one for one in able if not ENGINES[one.engine].fixed_size] or able
    installed = [one for one in able if all(find_spec(package) for package in ENGINES[one.engine].packages)]
    return sorted(installed or able[:1], key=build_seconds)  # if none is installed, the first states what to install


def _select(trials: Trials, candidates: Sequence[Runtime], is_open: bool) -> Selection:
    """Return the best candidate. It is built and compared with the float32 model, unless it is the module as it is.

    is_open: whether the batch size is open. Then the module is run too, to see whether a batch fits into memory.
    """
    batch_size = trials.workload.batch_size if is_open else None
    while able := [one for one in candidates if trials.works(one)]:
        best = min(able, key=trials.seconds)
        if trials.baseline in able and trials.seconds(best) > (1 - MIN_GAIN) * trials.seconds(trials.baseline):
            best = trials.baseline
        report = _report(trials, best, able, batch_size)
        if trials.kept is not None and trials.kept[0] == best:
            return Selection(best, batch_size, trials.kept[1], report)
        if best == Runtime(precision_of(trials.module)) and not is_open:
            return Selection(best, report=report)
        if compiled := trials.build(best):
            return Selection(best, batch_size, compiled, report)
    return Selection(candidates[0])  # and its error is that of the run


def _report(trials: Trials, best: Runtime, able: list[Runtime], batch_size: int | None) -> str:
    rates = {one: 1 / max(trials.found[one].image_seconds, 1e-9) for one in able}
    others = ", ".join(f"{one} {rates[one]:.1f}" for one in sorted(able, key=rates.__getitem__, reverse=True) if one != best)
    if not others and batch_size is None:
        return ""
    batch = "" if batch_size is None else f"batch size {batch_size}, "
    return f"auto: {best}, {batch}{rates[best]:.1f} images/s" + (f" ({others})" if others else "")
