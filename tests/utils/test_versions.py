import platform

import torch

import vitrail
from vitrail.utils.versions import installed_versions


def test_versions():
    assert installed_versions(["torch"]) == {
        "vitrail": vitrail.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
