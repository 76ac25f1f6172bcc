"""Settings of the published heads for segmentation and depth that their files do not hold: windows, blocks and ranges of depths.

Sources: facebookresearch/dinov2@b8931f7, hub/depthers.py, notebooks/semantic_segmentation.ipynb and the configs published next to the
heads; facebookresearch/dinov3@6876159, hub/depthers.py, eval/depth/models/encoder.py, eval/segmentation.
"""

import re

LINEAR_SLIDE = {"segmentation_size": 512, "segmentation_window": 512, "segmentation_stride": 341}
MULTI_SCALE_SLIDE = {
    "segmentation_size": 640,
    "segmentation_window": 640,
    "segmentation_stride": 320,
    "segmentation_scales": (1.0, 1.32, 1.73, 2.28, 3.0),
    "segmentation_flip": True,
}
NYU, KITTI, SYNTHMIX, CHMV2 = (0.001, 10.0), (0.001, 80.0), (0.001, 100.0), (0.001, 96.0)
# The range of depths in meters by the name of a published file
PUBLISHED_RANGES = {
    r"dinov2_vit[sblg]14_nyu_(linear4?|dpt)_head\.pth": NYU,
    r"dinov2_vit[sblg]14_kitti_(linear4?|dpt)_head\.pth": KITTI,
    r"dinov3_vit7b16_synthmix_dpt_head-02040be1\.pth": SYNTHMIX,
    r"dinov3_vitl16_chmv2_dpt_head-3703d643\.pth": CHMV2,
}
FIRST_OF_FOUR = {24: 4}  # the originals' four blocks have equal distances, but for the first of 24 (ViT-L)


def evenly_spaced(num_layers: int) -> list[int]:
    """Return four blocks with equal distances, the last one the last block."""
    return [num_layers * (index + 1) // 4 - 1 for index in range(4)]


def four_blocks(num_layers: int) -> list[int]:
    """Return the four blocks that the heads of both originals read."""
    first, *others = evenly_spaced(num_layers)
    return [FIRST_OF_FOUR.get(num_layers, first), *others]


def published_range(file: str) -> tuple[float, float] | None:
    """Return the range of depths in meters of a published head, by the name of its file; None for any other file."""
    return next((bounds for pattern, bounds in PUBLISHED_RANGES.items() if re.fullmatch(pattern, file)), None)
