"""The class that google/vit-large-patch16-224 predicts for a photograph.

Run it as `python google_vit_large_patch16_224.py [SOURCE] [IMAGE]`.
"""

import argparse
from pathlib import Path

import torch

import vitrail

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("source", nargs="?", default="google/vit-large-patch16-224", help="Hub id, file or folder of that checkpoint")
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("chelsea.jpg"), help="path or URL")
args = parser.parse_args()

model, image_processor, _ = vitrail.load(args.source)
with torch.inference_mode():
    logits = model(**image_processor(args.image, return_tensors="pt")).logits

print("Predicted class:", model.config.id2label[logits.argmax(-1).item()])
