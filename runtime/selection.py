"""The engine and the precision of `auto`: the fastest for a run, measured on its first images.

If the run has fewer than `trials.MIN_ROUNDS` rounds, the model runs as it is, and nothing is measured. Otherwise the model is timed, then
the engines, those that are built fastest first, as long as building them takes a small share of the time of the run. An engine that fails,
or whose outputs do not agree with the float32 model, is left out. Of the others, the one that takes the shortest time for the run, building
included, is selected. Measurements are remembered (`measurements.py`), so that the next run need not repeat them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import VitrailError
from .compiled import AUTO, ENGINES, NUM_CHECKED, PRECISIONS, CompiledModel, Runtime, precision_of
from .measurements import read_measurements, subject_of, write_measurements
from .trials import Trials, Workload, build_seconds

# By device, the precisions that `auto` may choose besides that of the weights, with the smallest cosine similarity to float32 of any image.
# CPUs that multiply in float16 do so in bfloat16
AUTO_PRECISIONS = {"cpu": {"bfloat16": 0.999, "int8": 0.99}, "cuda": {"bfloat16": 0.999, "float16": 0.999}}
MIN_GAIN = 0.05  # an engine that saves a smaller share of the time is not selected: measurements are not that precise


@dataclass(frozen=True)
class Selection:
    """The selected engine and precision.

    compiled: the model that they have compiled; None if nothing was built.
    report: one line about the measurements; empty if there are none.
    """

    runtime: Runtime
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
    if len(candidates) == 1 or workload.is_small:
        return Selection(candidates[0])
    images = sample(max(workload.batch_size, NUM_CHECKED))
    if images is None:
        return Selection(candidates[0])
    device = next(module.parameters()).device.type
    subject = subject_of(module, images.shape, batch_size=workload.batch_size, num_streams=workload.num_streams)
    trials = Trials(
        module,
        workload,
        images,
        calibration=calibration,
        min_cosine=AUTO_PRECISIONS.get(device, {}) if is_strict else {},
        remembered=read_measurements(subject),
    )
    for candidate in candidates:
        trials.run(candidate)
    selection = _select(trials, candidates)
    if trials.num_new:
        write_measurements(subject, trials.found.values())
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


def _select(trials: Trials, candidates: Sequence[Runtime]) -> Selection:
    """Return the best candidate. It is built and compared with the float32 model, unless it is the module as it is."""
    while able := [one for one in candidates if trials.works(one)]:
        best = min(able, key=trials.seconds)
        if trials.baseline in able and trials.seconds(best) > (1 - MIN_GAIN) * trials.seconds(trials.baseline):
            best = trials.baseline
        report = _report(trials, best, able)
        if trials.kept is not None and trials.kept[0] == best:
            return Selection(best, trials.kept[1], report)
        if best == Runtime(precision_of(trials.module)):
            return Selection(best, None, report)
        if compiled := trials.build(best):
            return Selection(best, compiled, report)
    return Selection(candidates[0])  # and its error is that of the run


def _report(trials: Trials, best: Runtime, able: list[Runtime]) -> str:
    rates = {one: 1 / max(trials.found[one].image_seconds, 1e-9) for one in able}
    others = ", ".join(f"{one} {rates[one]:.1f}" for one in sorted(able, key=rates.__getitem__, reverse=True) if one != best)
    return f"auto: {best}, {rates[best]:.1f} images/s ({others})" if others else ""
