"""Features of a photograph from timm's vit_base_patch8_224.dino, by timm's two methods.

Run it as `python timm_vit_base_patch8_224_dino.py [SOURCE] [IMAGE]`.
"""

import argparse
from pathlib import Path

import torch

import vitrail

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("source", nargs="?", default="timm/vit_base_patch8_224.dino", help="Hub id, file or folder of that checkpoint")
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("chelsea.jpg"), help="path or URL")
args = parser.parse_args()

model, image_processor, _ = vitrail.load(args.source)
pixel_values = image_processor(args.image, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    features = model.forward_features(pixel_values)  # every token after the final norm: [CLS], then 28 x 28 patches
    pooled = model.forward_head(features, pre_logits=True)  # the input of a classifier: here [CLS]

print(f"forward_features: {tuple(features.shape)}")
print(f"forward_head(pre_logits=True): {tuple(pooled.shape)}, begins with", *(f"{value:.4f}" for value in pooled[0, :4]))
