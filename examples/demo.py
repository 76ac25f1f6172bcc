"""`make demo`: convert, verify, embed, extract, evaluate and visualize a small checkpoint, offline.

The checkpoint, examples/digits/dino_vit_digits.pth, is in DINO's own format and was trained by `vitrail pretrain` on half of scikit-learn's
digits; its card is examples/digits/README.md. Evaluation uses the other half. With a network, `vitrail convert dino-vits16 OUT` converts an
official checkpoint instead.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

import vitrail

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = os.path.relpath(ROOT / "examples" / "digits" / "dino_vit_digits.pth")
SHOWN = (8, 16, 2, 21)  # rows of the validation split, which the model was not trained on
ENLARGED = 96  # size of the pictures, in pixels


def run(*arguments: str) -> str:
    """Run a command, print it with its output, and return both as Markdown.

    It runs in this process, because a new one would import torch and transformers again.
    """
    shown, output = " ".join(["vitrail", *arguments]), io.StringIO()
    print("$", shown, flush=True)
    sys.argv = ["vitrail", *arguments]
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_module("vitrail", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    print(output.getvalue(), flush=True)
    return f"    $ {shown}\n" + "".join(f"    {line.rstrip()}\n" for line in output.getvalue().splitlines())


def write_digits(folder: Path) -> list[str]:
    """Write a few digits that the model was not trained on, and return their paths."""
    folder.mkdir(exist_ok=True)
    digits = vitrail.load_labeled_images("digits").validation
    files = [folder / f"{digits[row]['label']}.png" for row in SHOWN]
    for file, row in zip(files, SHOWN, strict=True):
        with Image.open(io.BytesIO(digits[row]["image"]["bytes"])) as image:
            image.resize((ENLARGED, ENLARGED)).save(file)
    return [str(file) for file in files]


def main(output_dir: Path) -> None:
    start = time.perf_counter()
    logging.disable_progress_bar()
    output_dir.mkdir(parents=True, exist_ok=True)
    model_dir, features, probe_dir = output_dir / "dino-vit-digits", output_dir / "features.safetensors", output_dir / "probe"
    picture, components, nearest = (output_dir / name for name in ("attention.png", "pca.png", "knn.json"))
    digits = write_digits(output_dir / "digits")
    size, cache = ["--image-size", str(ENLARGED)], ["--cache-dir", str(output_dir / "cache")]

    log = run("convert", CHECKPOINT, str(model_dir))
    log += run("verify", str(model_dir), "--against", CHECKPOINT, "--image", digits[0])
    log += run("info", str(model_dir))
    log += run("embed", str(model_dir), *digits, "--output", str(features))
    log += run("extract", str(model_dir), "digits", str(output_dir / "features"), "--split", "validation")
    log += run("knn", str(model_dir), "--data", "digits", "-k", "20", "--output", str(nearest), *cache)
    log += run("probe", str(model_dir), "--data", "digits", "--output", str(probe_dir), "--overwrite", *cache)
    log += run("attention", str(model_dir), *digits, "--output", str(picture), *size)
    log += run("pca", str(model_dir), *digits, "--output", str(components), *size, "--no-foreground")
    knn = json.loads(nearest.read_text(encoding="utf-8"))
    probed = json.loads((probe_dir / "results.json").read_text(encoding="utf-8"))

    model = AutoModel.from_pretrained(model_dir)
    image_processor = AutoImageProcessor.from_pretrained(model_dir)
    with torch.no_grad():
        outputs = model(**image_processor(digits, return_tensors="pt"))
    difference = (outputs.pooler_output - load_file(features)["features"]).abs().max().item()
    unseen = knn["data"]["validation_images"]
    summary = (
        f"# vitrail {vitrail.__version__}: the main job\n\n"
        "The checkpoint on board is small and was trained by DINO, without labels, on half of scikit-learn's digits. "
        "[Its card](../examples/digits/README.md) describes the training and compares it with random weights and raw pixels. "
        "Everything below is measured on the other half.\n\n"
        f"{log}\n"
        f"`AutoModel` returned `last_hidden_state` of shape {tuple(outputs.last_hidden_state.shape)}; its pooled features differ from "
        f"those of `vitrail embed` by at most {difference:.1e}. [The card](dino-vit-digits/README.md) of the converted model shows the "
        "verification.\n\n"
        f"On {unseen} digits that it was not trained on, 20-NN classification reaches {knn['accuracy']:.1%}, and the best of "
        f"{len(probed['heads'])} linear classifiers {probed['accuracy']:.1%} ([its card](probe/README.md)).\n\n"
        "![attention](attention.png)\n\n![principal components of patches](pca.png)\n\n"
        "![accuracy of every head](probe/heads.png)\n\n![confusion matrix](probe/confusion.png)\n"
    )
    (output_dir / "summary.md").write_text(summary, encoding="utf-8")
    print(f"{output_dir}: models, cards, features, pictures and summary.md, in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
