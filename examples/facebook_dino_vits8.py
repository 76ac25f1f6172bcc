"""The last hidden state of facebook/dino-vits8 for a photograph.

Run it as `python facebook_dino_vits8.py [SOURCE] [IMAGE]`.
"""

import argparse
from pathlib import Path

import torch

import vitrail

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("source", nargs="?", default="facebook/dino-vits8", help="Hub id, file or folder of that checkpoint")
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("chelsea.jpg"), help="path or URL")
args = parser.parse_args()

model, image_processor, _ = vitrail.load(args.source)
inputs = image_processor(args.image, return_tensors="pt")
with torch.inference_mode():
    last_hidden_state = model(**inputs).last_hidden_state  # [CLS], then 28 x 28 patches

print(f"pixel_values {tuple(inputs['pixel_values'].shape)} -> last_hidden_state {tuple(last_hidden_state.shape)}")
print("[CLS] begins with", *(f"{value:.4f}" for value in last_hidden_state[0, 0, :4]))
