"""`auto`: what is measured, what is selected and what is remembered. Engines and the clock are not real."""

import json

import pytest
import torch
from fake_engines import FakeEngines
from torch import nn

import vitrail
from image_folders import small_model
from vitrail.errors import VitrailError
from vitrail.runtime import measurements, trials
from vitrail.runtime.compiled import Runtime
from vitrail.runtime.selection import begun_runtime, find_candidates, select_runtime
from vitrail.runtime.trials import Workload

pytestmark = pytest.mark.usefixtures("one_thread")

AUTO = Runtime(engine="auto")
EAGER, OPENVINO, COMPILE = Runtime("float32"), Runtime("float32", "openvino"), Runtime("float32", "compile")


class TwoNumbers(nn.Module):
    """Two numbers for each image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, pixel_values):
        return (pixel_values.mean(dim=(2, 3)) @ self.weight.to(pixel_values.dtype),)


@pytest.fixture
def engines(monkeypatch):
    """Eager takes 0.1 s for an image. The other engines are faster, the more so the longer they are built."""
    engines = FakeEngines(monkeypatch)
    engines.add("eager", 0.1, precisions=("float32", "float64"))
    engines.add("compile", 0.04, build=60.0)
    engines.add("openvino", 0.05, build=5.0)
    return engines


@pytest.fixture
def file(engines, monkeypatch, tmp_path):
    """The file of measurements."""
    file = tmp_path / "folder" / "engines.json"
    monkeypatch.setattr(measurements, "measurement_file", lambda: file)
    return file


def images(number):
    return torch.randn(number, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def select(runtime=AUTO, *, num_images=None, module=None, calibrates=False, sample=images, **workload):
    module = module or TwoNumbers()
    return select_runtime(
        module,
        find_candidates(module, runtime, calibrates=calibrates),
        Workload(8, num_images=num_images, **workload),
        sample,
        calibration=lambda: images(4),
        is_strict=runtime.precision == "auto",
    )


@pytest.mark.parametrize(
    ("num_images", "built", "selected"),
    [
        (199, [], EAGER),  # fewer than 25 batches of 8: not even the model is timed
        (200, ["eager"], EAGER),  # 20 s, of which building any engine would take more than a tenth
        (900, ["eager", "openvino"], OPENVINO),
        (6000, ["eager", "openvino"], OPENVINO),  # 600 s: both engines would take more than 60 s
        (7200, ["eager", "openvino", "compile"], COMPILE),
        (None, ["eager", "openvino", "compile"], COMPILE),
    ],
)
def test_engines_are_built_while_that_takes_a_tenth_of_the_run(engines, num_images, built, selected):
    selection = select(num_images=num_images)
    assert [name for name, _ in engines.built] == built
    assert selection.runtime == selected
    assert (selection.compiled is None) == (built == [])
    assert (selection.report == "") == (len(built) < 2)
    if num_images is None:
        assert selection.report == "auto: compile float32, 25.0 images/s (openvino float32 20.0, eager float32 10.0)"
        assert selection.compiled.runtime == selected


@pytest.mark.parametrize("num_images", [200, 900, 7200, 100_000])
def test_measuring_takes_a_bounded_part_of_the_run(engines, num_images):
    """A tenth of its time for engines, and one call and up to three rounds of the model itself."""
    select(num_images=num_images)
    assert engines.now <= 0.1 * (0.1 * num_images + 4 * 8)


def select_batch_size(engines, eager, num_images=None, max_batch_size=10_000, *, others=10.0):
    engines.add("eager", eager)
    engines.add("openvino", others)
    engines.add("compile", others)
    module = TwoNumbers()
    workload = Workload(64, num_images=num_images, max_batch_size=max_batch_size)
    return select_runtime(module, find_candidates(module, AUTO), workload, images)


def device(limit):
    """An engine with the memory for this number of images, whose calls take a second longer than their images do."""

    def seconds(number):
        if number > limit:
            raise torch.OutOfMemoryError("out of memory")
        return 1 + 0.01 * number

    return seconds


@pytest.mark.parametrize(
    ("limit", "num_images", "max_batch_size", "selected"),
    [
        (10_000, None, 10_000, 1024),  # 2048 saves 4.6 % of the time of an image, 1024 saves 8.2 %
        (10_000, None, 512, 512),
        (500, None, 10_000, 256),
        (64, None, 10_000, 64),
        (10_000, 25 * 64, 10_000, 64),  # a tenth of the run, 4.1 s, is less than three calls with 64 images and three with 128
        (10_000, 60 * 64, 10_000, 128),
    ],
)
def test_the_batch_size_doubles_as_long_as_it_gains_and_fits(engines, limit, num_images, max_batch_size, selected):
    selection = select_batch_size(engines, device(limit), num_images, max_batch_size)
    assert (selection.runtime, selection.batch_size, selection.compiled.batch_size) == (EAGER, selected, selected)
    rate = selected / (1 + 0.01 * selected)
    assert selection.report.startswith(f"auto: eager float32, batch size {selected}, {rate:.1f} images/s")


def test_the_batch_size_is_remembered_once_no_larger_one_is_left_to_try(engines, file):
    short = select_batch_size(engines, device(10_000), 60 * 64)
    assert (short.batch_size, file.exists()) == (128, False)
    first = select_batch_size(engines, device(10_000))
    [model] = json.loads(file.read_text())["models"].values()
    assert (model["subject"]["batch_size"], model["batch_size"]) == (None, 1024)
    engines.batch_sizes.clear()
    again = select_batch_size(engines, device(10_000))
    assert (again.batch_size, again.report) == (1024, first.report)
    assert engines.batch_sizes == [1024]  # whether it still fits
    full = select_batch_size(engines, device(1000), others=device(1000))
    assert (full.runtime, full.batch_size) == (EAGER, None)


def test_the_batch_size_that_is_given_stays(engines):
    engines.add("eager", device(10_000))
    assert select(num_images=10_000).batch_size is None
    assert set(engines.batch_sizes) == {8}


def test_an_engine_that_was_expected_to_build_faster_ends_the_search(engines):
    engines.add("openvino", 0.05, build=50.0, expected=5.0)
    assert select(num_images=7200).runtime == OPENVINO  # 55 s are spent, and another 60 s expected
    assert ("compile", "float32") not in engines.built


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"turned": 1.0}, "their cosine similarity is 0.7071"),
        ({"error": RuntimeError("Unsupported operator")}, "Unsupported operator"),
    ],
)
def test_what_does_not_agree_or_build_is_left_out(engines, fields, reason, monkeypatch):
    lines = []
    monkeypatch.setattr(trials.logger, "info", lines.append)
    engines.add("compile", 0.04, build=60.0, **fields)
    assert select().runtime == OPENVINO
    (line,) = lines
    assert "auto leaves out compile float32: " in line
    assert reason in line


def test_an_engine_that_is_hardly_faster_is_not_selected(engines):
    for name in ("openvino", "compile"):
        engines.add(name, 0.098)
    assert select().runtime == EAGER


def test_measurements_are_remembered(engines, file):
    first = select()
    engines.built.clear()
    again = select()
    assert engines.built == [("compile", "float32")]  # the selected one, which the run needs
    assert (again.runtime, again.report) == (first.runtime, first.report)
    assert select(num_images=1000).runtime == OPENVINO  # 5 + 50 s, where compile takes 60 + 40 s
    assert select(num_images=450).runtime == OPENVINO  # its 5 s are a tenth of the run or more, but it is faster by 17 s
    [model] = json.loads(file.read_text())["models"].values()  # building includes a call with 8 or 16 images
    assert model["subject"]["batch_size"] == 8
    assert {one["engine"]: one["build_seconds"] for one in model["measurements"]} == pytest.approx(
        {"eager": 0, "openvino": 5.8, "compile": 60.64}
    )


@pytest.mark.parametrize("change", ["batch", "size", "dtype", "architecture", "threads"])
def test_measurements_belong_to_one_model_and_machine(engines, file, change):
    select()
    engines.built.clear()
    module = TwoNumbers()
    if change == "batch":
        select_runtime(module, find_candidates(module, AUTO), Workload(4), images)
    elif change == "size":
        select(sample=lambda number: images(number)[..., :2])
    elif change == "dtype":
        select(Runtime("float32", "auto"), module=module.double())
    elif change == "architecture":
        module.more = nn.Linear(1, 1)
        select(module=module)
    else:
        torch.set_num_threads(2)
        select()
        torch.set_num_threads(1)
    assert len(engines.built) > 1


def test_other_weights_of_the_architecture_share_measurements_and_are_compared(engines, file):
    select()
    engines.add("compile", 0.04, build=60.0, turned=1.0)
    assert select().runtime == OPENVINO
    engines.add("compile", 0.04, build=60.0)
    assert select().runtime == COMPILE  # and that it did not agree is not remembered


def test_an_engine_that_cannot_be_built_is_not_tried_again(engines, file):
    engines.add("compile", 0.04, build=60.0, error=RuntimeError("no C++ compiler"))
    select()
    select()
    assert [name for name, _ in engines.built].count("compile") == 1
    assert '"refused": "no C++ compiler"' in file.read_text()


@pytest.mark.parametrize("package", ["vitrail", "torch", "onnxruntime", "openvino"])
def test_another_version_makes_measurements_invalid(engines, file, monkeypatch, package):
    select()
    engines.built.clear()
    if package == "vitrail":
        monkeypatch.setattr(measurements, "__version__", "0.0.1")
    else:
        before = measurements.installed_version
        monkeypatch.setattr(measurements, "installed_version", lambda name: "0.0.1" if name == package else before(name))
    select()
    assert [name for name, _ in engines.built] == ["eager", "openvino", "compile"]
    assert json.loads(file.read_text())["versions"][package] == "0.0.1"


def measurement(**fields):
    """The content of a file with one measurement."""
    model = {"subject": {}, "measurements": [{"engine": "eager", "precision": "float32"} | fields]}
    return json.dumps({"versions": {}, "models": {"a": model}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b'{"format_version": 99}', b'{"versions": {}, "models": {"a": 1}}', b"\xff"),
        *(measurement(engine="other"), measurement(precision="half"), measurement(image_seconds=-1.0)),
        *(measurement(image_seconds=float("nan")), measurement(build_seconds=float("inf"))),
    ],
)
def test_a_damaged_file_is_ignored_and_written_again(engines, file, content, monkeypatch):
    file.parent.mkdir()
    file.write_bytes(content)
    warned = []
    monkeypatch.setattr(measurements.logger, "warning", warned.append)
    assert select().runtime == COMPILE
    assert warned == [f"{file} is damaged, or another vitrail has written it: its measurements are made again"]
    assert len(json.loads(file.read_text())["models"]) == 1


@pytest.mark.parametrize("name", ["a-file/engines.json", f"{300 * 'x'}/engines.json"])  # the system refuses to look for the second
def test_nothing_is_remembered_where_that_is_impossible(engines, tmp_path, monkeypatch, name):
    (tmp_path / "a-file").touch()
    monkeypatch.setattr(measurements, "measurement_file", lambda: tmp_path / name)
    assert select().runtime == select().runtime == COMPILE
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_the_file_lies_in_the_cache_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(measurements.constants, "HF_HOME", str(tmp_path))
    assert measurements.measurement_file() == tmp_path / "vitrail" / "engines.json"


HALF_AND_INT8 = {"float32": 0.1, "bfloat16": 0.02, "int8": 0.01}


@pytest.mark.parametrize(
    ("precision", "turned", "calibrates", "selected"),
    [
        (None, 0.0, True, Runtime("float32")),
        ("float32", 0.0, True, Runtime("float32")),
        ("bfloat16", 0.0, True, Runtime("bfloat16", "openvino")),
        ("int8", 0.0, False, Runtime("int8", "openvino")),
        ("auto", 0.0, True, Runtime("int8", "openvino")),
        ("auto", 0.0, False, Runtime("bfloat16", "openvino")),  # without images to calibrate on
        ("auto", 0.04, True, Runtime("int8", "openvino")),  # a cosine of 0.9992
        ("auto", 0.1, True, Runtime("int8", "openvino")),  # 0.995: enough for int8, and too little for bfloat16
        ("auto", 0.1, False, Runtime("float32")),
        ("auto", 0.2, True, Runtime("float32")),  # 0.98
    ],
)
def test_the_precision_stays_unless_auto_may_choose_it(engines, precision, turned, calibrates, selected):
    engines.add("compile", 1.0)
    engines.add("openvino", HALF_AND_INT8, precisions=("float32", "bfloat16", "int8"), turned=turned)
    assert select(Runtime(precision, "auto"), calibrates=calibrates).runtime == selected


def test_candidates_support_device_precision_and_sizes_and_are_installed(engines):
    engines.add("onnxruntime", 0.1, precisions=("float32", "int8"), packages=("no_such_package",), build=1.0)
    engines.add("openvino", 0.1, precisions=("float32", "int8"), devices=("cpu",), build=5.0)
    module = TwoNumbers()
    assert find_candidates(module, AUTO) == [EAGER, OPENVINO, COMPILE]
    assert find_candidates(module, AUTO, one_size=False) == [EAGER]
    assert find_candidates(module, Runtime("int8", "auto"), one_size=False) == [Runtime("int8", "openvino")]
    engines.add("openvino", 0.1, precisions=("float32", "int8"), packages=("no_such_package",))
    assert find_candidates(module, Runtime("int8", "auto")) == [Runtime("int8", "openvino")]  # whose error says what to install
    engines.add("onnxruntime", 0.1, devices=("cpu",))
    engines.add("openvino", 0.1, precisions=("float32", "int8"), devices=("cpu",))
    with pytest.raises(VitrailError, match="no engine runs a model in int8 on meta"):
        find_candidates(module.to("meta"), Runtime("int8", "auto"))


def test_images_that_cannot_be_used_are_left_to_the_run(engines):
    assert select(sample=lambda number: None).runtime == EAGER
    assert engines.built == []


def test_threads_call_at_the_same_time(engines):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        selection = select(num_streams=2)
    finally:
        torch.set_num_threads(threads)
    assert selection.report.startswith("auto: compile float32, 25.0 images/s")


@pytest.mark.parametrize(
    ("runtime", "settings", "found"),
    [
        (AUTO, {"precision": "float32", "engine": "openvino"}, OPENVINO),
        (Runtime("auto", "auto"), {"precision": "int8", "engine": "openvino"}, Runtime("int8", "openvino")),
        (AUTO, {"precision": "int8", "engine": "openvino"}, None),
        (Runtime("auto", "eager"), {"precision": "float32", "engine": "openvino"}, None),
        (AUTO, {"precision": "float32", "engine": ["eager"]}, None),
        (AUTO, {}, None),
    ],
)
def test_a_run_keeps_what_it_was_begun_with_where_that_is_left_open(runtime, settings, found):
    assert begun_runtime(TwoNumbers(), runtime, settings) == found


def test_optimize_selects(engines):
    model = small_model()
    fast = vitrail.optimize(model, engine="auto")
    assert (fast.report.engine, fast.report.precision) == ("compile", "float32")
    assert fast.report.selection.startswith("auto: compile float32, 25.0 images/s")
    assert vitrail.optimize(model, engine="auto", num_images=9).report.engine == "eager"
