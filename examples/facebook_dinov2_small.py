"""facebook/dinov2-small, converted once into a folder, then loaded by transformers' Auto classes.

Run it as `python facebook_dinov2_small.py [SOURCE] [IMAGE] [--folder FOLDER]`.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel

import vitrail

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("source", nargs="?", default="facebook/dinov2-small", help="Hub id, file or folder of that checkpoint")
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("chelsea.jpg"), help="path or URL")
parser.add_argument("--folder", type=Path, default=Path("dinov2-small"), help="folder of the converted model")
args = parser.parse_args()

if not args.folder.exists():
    report = vitrail.convert_checkpoint(args.source, args.folder)
    print(f"Converted {report.source.name} into {args.folder}")

image_processor = AutoImageProcessor.from_pretrained(args.folder)
model = AutoModel.from_pretrained(args.folder)
with torch.inference_mode():
    outputs = model(**image_processor(args.image, return_tensors="pt"))

print(f"last_hidden_state {tuple(outputs.last_hidden_state.shape)}: [CLS] and {outputs.patch_grid} patches")
print("pooler_output begins with", *(f"{value:.4f}" for value in outputs.pooler_output[0, :4]))
