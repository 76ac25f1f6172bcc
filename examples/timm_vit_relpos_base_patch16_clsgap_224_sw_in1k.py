"""The five most probable classes of a photograph by timm's vit_relpos_base_patch16_clsgap_224.sw_in1k, and its features.

Run it as `python timm_vit_relpos_base_patch16_clsgap_224_sw_in1k.py [SOURCE] [IMAGE]`.
"""

import argparse
from pathlib import Path

import torch

import vitrail

NAME = "timm/vit_relpos_base_patch16_clsgap_224.sw_in1k"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("source", nargs="?", default=NAME, help="Hub id, file or folder of that checkpoint")
parser.add_argument("image", nargs="?", default=Path(__file__).with_name("chelsea.jpg"), help="path or URL")
args = parser.parse_args()

model, image_processor, _ = vitrail.load(args.source)
pixel_values = image_processor(args.image, return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    features = model.forward_features(pixel_values)  # unpooled: [CLS], then 14 x 14 patches
    pooled = model.forward_head(features, pre_logits=True)  # the mean of the patches, normed
    percent = 100 * model.forward_head(features)[0].softmax(dim=-1)

for value, index in zip(*percent.topk(5), strict=True):
    print(f"{value:6.2f} %  {model.config.id2label[index.item()]}")
print(f"unpooled {tuple(features.shape)}, pooled {tuple(pooled.shape)}")
