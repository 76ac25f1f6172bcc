"""Trials of engines: each is built, compared with the float32 model and timed, as far as this pays in the run that it is for."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..errors import OutputMismatchError
from .compiled import ENGINES, CompiledModel, Runtime
from .measurements import Measurement
from .workers import InferenceWorkers

MIN_ROUNDS = 25  # a run of fewer rounds, of one batch for each thread, is not worth any measurement
SHARE = 0.1  # of the time that a run takes without engines: trying engines may take this much
ROUNDS, MAX_SECONDS = 3, 1.0  # an engine is timed in this many rounds, of which the median counts, or in fewer that take so long
INT8_SECONDS = 30.0  # that calibration adds to the time of building
# What compilers raise for models that they do not support
BUILD_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(MemoryError, OSError, RuntimeError, TypeError, ValueError),
)

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Workload:
    """The run that an engine is for.

    batch_size: images in each call.
    num_streams: threads that call at the same time.
    num_images: of the whole run; None if their number is unknown and large, so that every measurement pays.
    """

    batch_size: int
    num_streams: int = 1
    num_images: int | None = None

    @property
    def is_small(self) -> bool:
        """Whether the run is too short for any measurement."""
        return self.num_images is not None and self.num_images < MIN_ROUNDS * self.batch_size * self.num_streams


class Trials:
    """Trials of runtimes with a module, in order; the first that works is the baseline, with which the others are compared.

    found: the measurements, by runtime: those that are remembered, and those that are made now.
    num_new: the number of measurements that are made now.
    baseline: the first runtime that works.
    kept: the fastest runtime that has been built, and the model that it compiled.

    Args:
        images: (N, C, H, W), on which outputs are compared, and a batch of which is timed.
        calibration: returns the images that int8 is calibrated on.
        min_cosine: by precision, the smallest cosine similarity to the float32 model, where `CompiledModel` accepts less.
        remembered: measurements of earlier runs.
    """

    def __init__(
        self,
        module: nn.Module,
        workload: Workload,
        images: torch.Tensor,
        *,
        calibration: Callable[[], torch.Tensor | None],
        min_cosine: Mapping[str, float],
        remembered: Iterable[Measurement],
    ) -> None:
        self.module = module
        self.workload = workload
        self.images = images
        self.calibration = calibration
        self.min_cosine = min_cosine
        self.found = {Runtime(one.precision, one.engine): one for one in remembered}
        self.num_new = 0
        self.baseline: Runtime | None = None
        self.kept: tuple[Runtime, CompiledModel] | None = None
        self._left_out: set[Runtime] = set()  # by this run alone: other weights may agree, and memory may be free
        self._baseline_model: CompiledModel | None = None
        self._spent = 0.0

    def works(self, runtime: Runtime) -> bool:
        """Whether a runtime has been measured, and was not refused."""
        return runtime in self.found and self.found[runtime].refused is None and runtime not in self._left_out

    def seconds(self, runtime: Runtime) -> float:
        """Return the time that the run still takes with a runtime that works."""
        found, built = self.found[runtime], self.kept is not None and self.kept[0] == runtime
        if self.workload.num_images is None:
            return found.image_seconds
        return found.image_seconds * self.workload.num_images + (0.0 if built else found.build_seconds)

    def run(self, runtime: Runtime) -> None:
        """Measure a runtime, unless it is remembered, or building it takes too long for this run."""
        if runtime not in self.found and self._pays(runtime):
            started, is_baseline = perf_counter(), self.baseline is None
            self._measure(runtime)
            self._spent += 0.0 if is_baseline else perf_counter() - started
        if self.baseline is None and self.works(runtime):
            self.baseline = runtime

    def build(self, runtime: Runtime) -> CompiledModel | None:
        """Return the compiled model; None if it cannot be built or does not agree with the float32 model, and then it does not work."""
        try:
            compiled = CompiledModel(
                self.module,
                runtime,
                batch_size=self.workload.batch_size,
                calibration=self.calibration() if runtime.precision == "int8" else None,
                num_streams=self.workload.num_streams,
            )
            compiled(self.images)
            least = self.min_cosine.get(compiled.precision, 0.0)
            worst = min((agreement.cosine for agreement in compiled.agreement), default=1.0)
            if worst < least:
                raise OutputMismatchError(f"the cosine similarity to the float32 model is {worst:.4f}, expected {least} or more")
        except (OutputMismatchError, MemoryError, OSError, torch.OutOfMemoryError) as error:
            logger.info(f"auto leaves out {runtime}: {error}")
            self._left_out.add(runtime)
        except BUILD_ERRORS as error:
            logger.info(f"auto leaves out {runtime}: {error}")
            self._add(runtime, refused=str(error) or type(error).__name__)
        else:
            return compiled
        return None

    def _pays(self, runtime: Runtime) -> bool:
        if self.baseline is None or self.workload.num_images is None:
            return True
        image_seconds = self.found[self.baseline].image_seconds
        one_round = image_seconds * self.workload.batch_size * self.workload.num_streams
        timing = 2 * min(ROUNDS * one_round, MAX_SECONDS + one_round)  # of the engine, and of the baseline
        return self._spent + build_seconds(runtime) + timing <= SHARE * image_seconds * self.workload.num_images

    def _measure(self, runtime: Runtime) -> None:
        started = perf_counter()
        if (compiled := self.build(runtime)) is None:
            return
        built = 0.0 if compiled.is_module else perf_counter() - started
        if self.baseline is None:
            self._baseline_model = compiled
            (seconds,) = self._time(compiled)
        else:
            if self._baseline_model is None:  # the measurement is remembered
                self._baseline_model = self.build(self.baseline)
            if self._baseline_model is None:
                return
            seconds, of_baseline = self._time(compiled, self._baseline_model)
            # In terms of the first time of the baseline, whatever else the machine does now
            seconds *= self.found[self.baseline].image_seconds / of_baseline
        self._add(runtime, build_seconds=built, image_seconds=seconds)
        if self.kept is None or seconds < self.found[self.kept[0]].image_seconds:
            self.kept = runtime, compiled

    def _time(self, *models: CompiledModel) -> list[float]:
        """Return the median time of each model for an image, measured in turns."""
        batch = self.images[torch.arange(self.workload.batch_size) % len(self.images)]
        times: list[list[float]] = [[] for _ in models]
        while len(times[0]) < ROUNDS and sum(map(sum, times)) < MAX_SECONDS * len(models):
            for model, taken in zip(models, times, strict=True):
                started = perf_counter()
                self._run_round(model, batch)
                taken.append(perf_counter() - started)
        return [statistics.median(taken) / (len(batch) * self.workload.num_streams) for taken in times]

    def _run_round(self, compiled: CompiledModel, batch: torch.Tensor) -> None:
        """Run a batch in each thread, as the run itself does, and wait for the outputs."""

        def compute(pixel_values: torch.Tensor) -> None:
            for output in compiled(pixel_values):
                output.cpu()

        if self.workload.num_streams == 1:
            compute(batch)
        else:
            with InferenceWorkers(compiled.device) as workers:
                list(workers.run(compute, [batch] * self.workload.num_streams))

    def _add(self, runtime: Runtime, **fields: Any) -> None:
        self.found[runtime] = Measurement(engine=runtime.engine, precision=str(runtime.precision), **fields)
        self.num_new += 1


def build_seconds(runtime: Runtime) -> float:
    """Return the typical time to build an engine in a precision."""
    return ENGINES[runtime.engine].build_seconds + (INT8_SECONDS if runtime.precision == "int8" else 0.0)
