"""Engines whose builds and calls take as long as a test says, on a clock that only they advance."""

from pathlib import Path

from vitrail.runtime import compiled, measurements, trials
from vitrail.runtime.compiled import Engine


class FakeEngines:
    """The engines of one test, in place of the real ones.

    built: (engine, precision) of each build, in order.
    batch_sizes: the number of images of each call, in order.
    """

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.built = []
        self.batch_sizes = []
        self.monkeypatch = monkeypatch
        for name in reversed(list(compiled.ENGINES)):  # so that they come back in their order
            monkeypatch.delitem(compiled.ENGINES, name)
        monkeypatch.setattr(trials, "perf_counter", lambda: self.now)
        # A file that cannot be written: nothing is remembered
        monkeypatch.setattr(measurements, "measurement_file", lambda: Path(__file__, "engines.json"))

    def add(self, name, seconds, *, build=0.0, expected=None, precisions=("float32",), turned=0.0, error=None, **fields):
        """Add an engine, or replace it.

        seconds: of each image; or by precision; or a function of the number of images that returns the time of a call.
        build: seconds to build; `expected`: those that are typical, by default the same.
        turned: how far outputs of two numbers are turned away from those of the module: the tangent of the angle.
        error: what building raises.
        """

        def compile_module(module, example, *, precision, calibration, num_streams):
            self.built.append((name, precision))
            self.now += build
            if error is not None:
                raise error

            def function(pixel_values):
                self.batch_sizes.append(number := len(pixel_values))
                self.now += (
                    seconds(number)
                    if callable(seconds)
                    else number * (seconds[precision] if isinstance(seconds, dict) else seconds)
                )
                return (
                    tuple(output + turned * output.flip(-1) * output.new_tensor([-1, 1]) for output in module(pixel_values))
                    if turned
                    else module(pixel_values)
                )

            return function

        engine = Engine(
            compile_module,
            precisions,
            **{"fixed_size": name != "eager", "build_seconds": build if expected is None else expected, **fields},
        )
        self.monkeypatch.setitem(compiled.ENGINES, name, engine)
