"""The judgement of the sweep over timm's registry, the steps and ratios of growth, and the parts of the gpu suite in miniature."""

import importlib.util
import json
import runpy
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers.utils import logging

import paths
import vitrail

REGISTRY = runpy.run_path(str(paths.CHECKOUT / "benchmarks" / "registry.py"))


@pytest.mark.parametrize(
    ("native", "other", "expected"),
    [
        ({}, {}, "agrees"),
        ({}, {"features": torch.tensor([4.0, 8.0005])}, "agrees at the native size"),
        ({"logits": torch.tensor([1.0, 2.0001])}, {}, "wrong"),
        ({"features": torch.tensor([float("nan"), 8.0])}, {}, "wrong"),
        ({"features": torch.tensor([[4.0, 8.0]])}, {}, "wrong"),  # another shape
        ({"features": torch.tensor([4.0001, 8.0])}, {}, "agrees"),  # 1.25e-5 of the largest value
    ],
)
def test_outputs_are_judged_relative_to_their_scale(native, other, expected):
    theirs = {"features": torch.tensor([4.0, 8.0]), "logits": torch.tensor([1.0, 2.0])}
    differences = [REGISTRY["difference"](theirs, theirs | changes) for changes in (native, other)]
    assert REGISTRY["outcome"](*differences)[0] == expected


@pytest.fixture
def suite(monkeypatch):
    """Import a module of the benchmarks from the checkout, whose root is a package of the same names as the installed one."""
    folder = paths.CHECKOUT / "benchmarks"
    package = importlib.util.spec_from_file_location("benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)])
    for name in ("benchmarks", *(f"benchmarks.{path.stem}" for path in folder.glob("[a-z]*.py"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "benchmarks", importlib.util.module_from_spec(package))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def growth(suite):
    return suite("growth")


@pytest.mark.parametrize(
    ("seconds", "peaks", "above"),
    [
        ((1, 9, 90), (400, 500, 510), ""),
        ((1, 30, 90), (400, 400, 400), ""),  # the largest sizes decide
        ((1, 2, 60), (400, 400, 400), "time"),
        ((1, 2, 3), (400, 400, 900), "memory"),
        ((1, 10, 111), (400, 1000, 9000), "time and memory"),
        ((1,), (400,), ""),
    ],
)
def test_what_grows_faster_than_the_rows_is_named(growth, seconds, peaks, above):
    row = growth.row_of(growth.Step("a step", print), [10, 100, 1000][: len(peaks)], list(zip(seconds, peaks, strict=True)))
    assert row["above"] == above


def test_the_steps_of_growth_run(growth, tmp_path):
    for step in growth.STEPS:
        if step.name not in ("make images", "extract", "report"):  # which tests of their own run
            step.work(tmp_path, 600)
    assert len(list((tmp_path / "files" / "data").iterdir())) == 600 // growth.ROWS_PER_FILE


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "patch_size": 16}


@pytest.fixture
def small_gpu(suite, monkeypatch):
    """The module of the suite, with small models and little work, on the CPU, and without compiling."""
    gpu, forward, extract, pretrain = map(suite, ("gpu", "forward", "extract", "pretrain"))
    official = forward.official_config
    small = SMALL | {"image_size": 32, "out_features": None, "out_indices": None}
    methods = {
        method: (trainer, partial(arguments, num_prototypes=32, head_hidden_size=16, head_bottleneck_size=8))
        for method, (trainer, arguments) in pretrain.METHODS.items()
    }
    dino = gpu.ARCHITECTURES[:1]
    for module, values in {
        forward: {
            "official_config": lambda name: vitrail.ViTConfig(**official(name).to_dict() | small),
            "PIXELS": 32,
            "REPEATS": 1,
        },
        gpu: {
            "PIXELS": 32,
            "ARCHITECTURES": dino,
            "COMPILED_ARCHITECTURE": dino[0],
            "KERNELS_ARCHITECTURES": dino,
            "BATCH_SIZES": (2,),
            "COMPILED_BATCH_SIZES": (2,),
            "KERNELS_BATCH_SIZE": 2,
            "EXTRACT": {"batch_size": 2, "copies": 2, "alone": 1, "auto": 2},
        },
        extract: {"NUMBER": 3, "REPEATS": 1, "make_model": lambda: vitrail.ViTModel(vitrail.ViTConfig(**SMALL)).eval()},
        pretrain: {
            "ARCHITECTURE": "vit_tiny_patch16",
            "PIXELS": 64,
            "LOCAL_PIXELS": 32,
            "CPU": (2, 1, 1),
            "GPU": (2, 1, 1),
            "METHODS": methods,
            "peak_of_a_process": lambda *arguments: 0.0,
        },
        torch: {"compile": lambda model, **options: model},
        torch.compiler: {"reset": lambda: None},
    }.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield gpu
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


@pytest.mark.usefixtures("one_thread")
def test_every_part_of_the_gpu_suite_runs(small_gpu):
    check_parts(small_gpu, torch.device("cpu"))


@pytest.mark.usefixtures("one_thread")
def test_every_part_of_the_gpu_suite_runs_on_cuda(cuda, small_gpu):
    check_parts(small_gpu, cuda)


def check_parts(small_gpu, device):
    """Run the suite, and check its rows."""
    small_gpu.DEVICE = device
    small_gpu.PEAKS = {small_gpu.device_name(): 0.5}
    rows = list(small_gpu.run())
    parts = {part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)}
    assert list(parts) == list(small_gpu.PARTS)
    assert all(row["images_per_second"] > 0 and row["device"] == small_gpu.device_name() for row in rows)
    assert {"vitrail", "transformers", "matrix products"} <= {row["way"] for row in parts["forward"]}
    if device.type == "cuda":
        assert {"vitrail, CUDA graph", "transformers, CUDA graph"} <= {row["way"] for row in parts["forward"]}
    compiled = {row["way"]: row for row in parts["compiled"]}
    assert {"vitrail, torch.compile", "transformers, torch.compile, CUDA graphs"} <= set(compiled)
    assert 0.99 < compiled["vitrail.optimize, compile"]["cosine"] <= 1
    assert {"vitrail", "vitrail, math", "matrix products"} <= {row["way"] for row in parts["kernels"]}
    assert {"vitrail extract", "vitrail extract, auto, --precision auto"} <= {row["way"] for row in parts["extract"]}
    assert {row["method"] for row in parts["pretrain"]} == {"DINO", "DINOv2"}

    patches, width, inner = 4, SMALL["hidden_size"], SMALL["intermediate_size"]
    tokens = patches + 1
    block = tokens * width * (3 * width + width + 2 * inner) + 2 * tokens**2 * width
    flops = 2 * (patches * 3 * 16**2 * width + SMALL["num_hidden_layers"] * block)
    for row in parts["forward"]:
        assert row["tflops"] == pytest.approx(row["images_per_second"] * flops / 1e12, rel=0.01)
        assert row["share_of_peak"] == pytest.approx(row["tflops"] / 0.5, abs=1e-3)


def test_rows_are_written_as_they_are_measured(suite, monkeypatch, tmp_path, capsys):
    """A run that is killed leaves the rows that it has measured."""
    main, output = suite("__main__").main, tmp_path / "gpu.json"

    def run(parts):
        yield {"part": parts[0], "way": "ours"}
        yield {"part": parts[1], "seconds": 2}
        if len(parts) > 2:
            raise RuntimeError("out of memory")

    monkeypatch.setitem(sys.modules, "benchmarks.gpu", SimpleNamespace(run=run))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--json", str(output), "--parts", "a", "b", "c"])
    with pytest.raises(RuntimeError, match="out of memory"):
        main()
    result = json.loads(output.read_text())
    assert result["rows"] == [{"part": "a", "way": "ours"}, {"part": "b", "seconds": 2}]
    assert result["versions"]["vitrail"] == vitrail.__version__

    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--parts", "a", "b"])
    main()
    assert "| part | way  |\n| ---- | ---- |\n| a    | ours |\n\n| part | seconds |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--rows", "10"])
    with pytest.raises(SystemExit):
        main()
    assert "the suite gpu has no --rows" in capsys.readouterr().err


def test_every_suite_can_be_imported(suite):
    main = suite("__main__")
    assert all(callable(suite(main.MODULES.get(name, name)).run) for name in main.SUITES)
