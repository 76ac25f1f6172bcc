"""The package as it is installed."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

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


def test_what_importing_imports(tmp_path):
    """torchvision is not needed, and packages that only downloads, commands, cards or engines need are imported when these run."""
    extra = ("datasets", "evaluate", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas", "pyarrow", "ray", "sklearn")
    program = (
        "import sys; sys.modules['torchvision'] = None\n"  # importing it raises
        "from transformers import AutoImageProcessor, AutoModel, PreTrainedModel\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import vitrail\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(after - before - sys.stdlib_module_names - {'psutil'}))\n"  # which transformers 5.24 imports later
        "import vitrail.cli.app, numpy\n"
        f"print([name for name in {extra} if name in sys.modules])\n"
        "image_processor = vitrail.make_image_processor('dino')\n"
        "print(*image_processor(numpy.zeros((300, 200, 3), 'uint8'), return_tensors='pt')['pixel_values'].shape)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.splitlines() == ["['vitrail']", "[]", "1 3 224 224"], ended.stdout + ended.stderr
