"""`make demo`: the main job, offline, on what is on board.

There is no network to take a published checkpoint from, so this writes a file in DINO's original format with the architecture of
ViT-S/16 and the deterministic weights of the golden tests. Features and attention are therefore those of an untrained model; with a
network, `vitrail convert dino-vits16 OUT` takes the official file instead. The linear probe learns scikit-learn's digits from features
of images of 64 pixels, which take seconds.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

import vitrail

ROOT = Path(__file__).resolve().parent.parent
PHOTO = os.path.relpath(ROOT / "examples" / "chelsea.jpg")


def run(*command: str) -> str:
    """Runs a command, shows it and gives what it printed."""
    shown = " ".join([Path(command[0]).name, *command[1:]])
    print("$", shown, flush=True)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(output, flush=True)
    return f"    $ {shown}\n" + "".join(f"    {line.rstrip()}\n" for line in output.splitlines())


def main(output_dir: Path) -> None:
    start = time.perf_counter()
    logging.disable_progress_bar()
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint, model_dir = output_dir / "dino_deitsmall16_deterministic.pth", output_dir / "dino-vits16"
    features, picture, components = (output_dir / name for name in ("features.safetensors", "attention.png", "pca.png"))
    small_dir, probe_dir = output_dir / "dino-vits16-64px", output_dir / "probe"
    program = str(Path(sys.executable).with_name("vitrail"))

    print(
        "No network is used: the checkpoint has DINO's format and architecture, and deterministic weights, which nobody trained.\n"
    )
    run(sys.executable, os.path.relpath(ROOT / "tests" / "golden" / "deterministic.py"), "dino_vits16", str(checkpoint))
    log = run(program, "convert", str(checkpoint), str(model_dir))
    log += run(program, "info", str(model_dir))
    log += run(program, "embed", str(model_dir), PHOTO, "--output", str(features))
    log += run(program, "attention", str(model_dir), PHOTO, "--output", str(picture))
    log += run(program, "pca", str(model_dir), PHOTO, "--output", str(components), "--size", "448", "--keep-aspect")
    log += run(program, "convert", str(checkpoint), str(small_dir), "--image-size", "64", "64")
    log += run(program, "extract", str(small_dir), "digits", str(output_dir / "digits"), "--split", "validation")
    cache_dir = str(output_dir / "features")
    log += run(program, "probe", str(small_dir), "--data", "digits", "--output", str(probe_dir), "--cache-dir", cache_dir)
    results = json.loads((probe_dir / "results.json").read_text(encoding="utf-8"))

    model = AutoModel.from_pretrained(model_dir)
    image_processor = AutoImageProcessor.from_pretrained(model_dir)
    with torch.no_grad():
        outputs = model(**image_processor(PHOTO, return_tensors="pt"))
    difference = (outputs.pooler_output - load_file(features)["features"]).abs().max().item()
    summary = (
        f"# vitrail {vitrail.__version__}: the main job\n\n"
        "The weights are deterministic, made for tests, and not trained: the picture shows that the machinery works, not what DINO "
        "sees.\n\n"
        f"{log}\n"
        f"`AutoModel` gave {tuple(outputs.last_hidden_state.shape)} tokens; its pooled features differ from those of `vitrail embed` by "
        f"at most {difference:.1e}.\n\n![attention](attention.png)\n\n![principal components of patches](pca.png)\n\n"
        f"The best of {len(results['heads'])} linear heads names {results['accuracy']:.1%} of {results['data']['validation_images']} "
        "digits that it has not seen. That is what linear classifiers make of random features; the backbone itself knows nothing.\n\n"
        "![accuracy of every head](probe/heads.png)\n\n![confusion matrix](probe/confusion.png)\n"
    )
    (output_dir / "summary.md").write_text(summary, encoding="utf-8")
    print(f"{output_dir}: models, features, pictures and summary.md, in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
