"""What it takes to import vitrail, against transformers with the parts that anyone who uses AutoModel needs, and timm.

Each measurement is a new process, from its start to its end; files are in the page cache and compiled to bytecode. `processor_s` is the
time of the processor, which depends less on what else the machine does; `beyond_parts_s` is how much of it is more than that of
transformers' parts.
"""

import importlib.util
import resource
import subprocess
import sys
import time
from typing import Any

from .processes import Numbers, medians

REPEATS = 9
PARTS = "transformers' parts"
HELP = """
import contextlib, runpy
sys.argv = ["vitrail", "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module("vitrail", run_name="__main__")
"""
PROGRAMS = {
    "Python": "",
    "import transformers": "import transformers",
    PARTS: "from transformers import AutoImageProcessor, AutoModel, PreTrainedModel",
    "import vitrail": "import vitrail",
    "vitrail --help": HELP,
    "import timm": "import timm",
}


def measure(name: str) -> Numbers:
    """Runs a program, which says how many modules it has imported."""
    program = f"import sys\n{PROGRAMS[name]}\nprint(len(sys.modules), file=sys.stderr)"
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_s": processor, "modules": int(ended.stderr.split()[-1])}


def run() -> list[dict[str, Any]]:
    """One row for each program."""
    names = [name for name in PROGRAMS if name != "import timm" or importlib.util.find_spec("timm")]
    measured = medians(names, measure, repeats=REPEATS)
    return [
        {
            "program": name,
            "seconds": round(numbers["seconds"], 2),
            "processor_s": round(numbers["processor_s"], 2),
            "modules": int(numbers["modules"]),
            "beyond_parts_s": round(numbers["processor_s"] - measured[PARTS]["processor_s"], 2),
        }
        for name, numbers in measured.items()
    ]
