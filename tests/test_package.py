"""The package as it is installed."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import paths
import vitrail


def test_the_tests_run_on_the_installed_package():
    """The checkout would hide a file that is missing in the wheel."""
    assert Path(vitrail.__file__).resolve().parent != paths.CHECKOUT
    assert Path(vitrail.__file__).parent.parent.name == "site-packages"


def test_every_package_of_the_checkout_is_installed():
    """setup.cfg lists packages one by one; none may be forgotten."""
    not_packages = {"tests", "examples", "benchmarks", "model_cards", "build", "dist"}
    for file in paths.CHECKOUT.glob("*/__init__.py"):
        if file.parent.name not in not_packages:
            assert (Path(vitrail.__file__).parent / file.parent.name / "__init__.py").is_file(), file.parent.name


def test_versions_agree():
    assert vitrail.__version__ == importlib.metadata.version("vitrail")


def test_public_names_exist():
    assert all(hasattr(vitrail, name) for name in vitrail.__all__)


# Packages that only downloads, commands, cards or engines need
EXTRAS = ("datasets", "evaluate", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas", "pyarrow", "ray", "sklearn")
# Prints what importing imports, what reading images does, and at the end what a command does whose packages are missing
PROGRAM = f"""
import sys; sys.modules["torchvision"] = None  # importing it raises
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
before = {{name.partition(".")[0] for name in sys.modules}}
import vitrail
after = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(after - before - sys.stdlib_module_names - {{"psutil"}}))  # which transformers 5.24 imports later
import vitrail.cli.app, numpy
print([name for name in {EXTRAS} if name in sys.modules])
from vitrail.data import read_images
from vitrail.features.embedding import ImageEmbedder
for source in ("photos", "photos/list.txt"):  # the import of datasets takes a second in every worker
    list(read_images(source).read())
print([name for name in ("datasets", "pyarrow", "aiohttp") if name in sys.modules])
image_processor = vitrail.make_image_processor("dino")
print(*image_processor(numpy.zeros((300, 200, 3), "uint8"), return_tensors="pt")["pixel_values"].shape)

import importlib.util, vitrail.utils.optional
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("pyarrow", "sklearn") else find(name, *rest)
vitrail.utils.optional.find_spec = importlib.util.find_spec
sys.argv = ["vitrail", "report", "out"]
try:
    vitrail.cli.app.main()
finally:
    print([name for name in ("pyarrow", "sklearn", "datasets") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory):
    """PROGRAM, which has ended."""
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(b"")
    (folder / "photos" / "list.txt").write_text("a.png\n")
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=folder)


def test_what_importing_imports(fresh_process):
    """torchvision is not needed, and other packages are imported when something needs them."""
    assert fresh_process.stdout.splitlines()[:4] == ["['vitrail']", "[]", "[]", "1 3 224 224"], fresh_process.stderr


def test_the_commands_are_there_without_what_they_need(fresh_process):
    """A command names the missing packages before it does anything, and has imported neither pyarrow nor scikit-learn."""
    assert fresh_process.returncode == 2
    message = 'not installed (pyarrow, sklearn): pip install ".[features]" in a checkout'
    assert message in " ".join(fresh_process.stderr.split())
    assert fresh_process.stdout.splitlines()[4:] == ["[]"]
