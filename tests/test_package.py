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


def test_torchvision_is_not_needed(tmp_path):
    program = (
        "import sys; sys.modules['torchvision'] = None\n"  # an import of it raises
        "import vitrail, numpy\n"
        "processor = vitrail.make_image_processor('dino')\n"
        "assert processor(numpy.zeros((300, 200, 3), 'uint8'), return_tensors='pt')['pixel_values'].shape == (1, 3, 224, 224)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_importing_takes_no_package_beyond_those_of_transformers(tmp_path):
    """Packages that only downloads, commands, cards or engines need are imported when these run."""
    program = (
        "import sys\n"
        "from transformers import AutoImageProcessor, AutoModel, PreTrainedModel\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import vitrail\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(after - before - sys.stdlib_module_names))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.strip() == "['vitrail']", ended.stdout + ended.stderr


def test_what_only_some_commands_need_is_not_imported(tmp_path):
    """Neither the package nor the command line imports them before a command needs them."""
    extra = ("datasets", "evaluate", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas", "pyarrow", "ray", "sklearn")
    program = f"import sys, vitrail.cli.app; print([name for name in {extra} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.strip() == "[]", ended.stderr
