"""Patch features of facebook/dinov3-vits16-pretrain-lvd1689m: how similar each patch of a photograph is to the patch in the middle.

The repository is gated: accept the license on its page and log in with `hf auth login`, or pass a file of the same weights.
Run it as `python facebook_dinov3_vits16.py [SOURCE] [IMAGE]`.
"""

import argparse
from pathlib import Path

import torch

import vitrail

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument(
    "source", nargs="?", default="facebook/dinov3-vits16-pretrain-lvd1689m", help="Hub id, file or folder of that checkpoint"
)
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("chelsea.jpg"), help="path or URL")
args = parser.parse_args()

model, image_processor, _ = vitrail.load(args.source)
pixel_values = image_processor(args.image, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    features = model.get_intermediate_layers(pixel_values, n=1, reshape=True)[0][0]  # (384, rows, columns)

_, rows, columns = features.shape
middle = features[:, rows // 2, columns // 2, None, None]
similarity = torch.nn.functional.cosine_similarity(features, middle, dim=0)  # (rows, columns), from -1 to 1

print(f"pixel_values {tuple(pixel_values.shape)} -> patch features {tuple(features.shape)}")
for row in similarity:
    print("".join(2 * " .:-=+*#%@"[round(9 * value)] for value in row.clamp(0, 1).tolist()))
