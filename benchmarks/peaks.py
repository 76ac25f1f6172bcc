"""The operations of a forward pass, and how many of them graphics cards can do in a second."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vitrail

# By the name that torch gives a card: TFLOP/s of dense matrix products in bfloat16 with sums in float32, from NVIDIA's data sheets. Where
# they give the rate with sparsity alone, this is half of it
PEAKS = {
    "NVIDIA B200": 2250,  # HGX B200: 36 PFLOP/s with sparsity, of 8 GPUs
    "NVIDIA H200": 989,  # H200 data sheet, SXM: 1,979 with sparsity
    "NVIDIA H200 NVL": 836,  # the same, NVL: 1,671
    "NVIDIA H100 80GB HBM3": 989,  # H100 data sheet, SXM: 1,979
    "NVIDIA H100 NVL": 836,  # the same, NVL: 1,671
    "NVIDIA H100 PCIe": 756,  # the same, PCIe: 1,513
    "NVIDIA A100-SXM4-40GB": 312,  # A100 data sheet
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A10": 125,  # A10 data sheet
    "NVIDIA L40S": 362,  # L40S data sheet
    "NVIDIA L4": 121,  # L4 data sheet: 242 with sparsity
    "NVIDIA GeForce RTX 4090": 165,  # Ada architecture, appendix A: 165.2
    "NVIDIA GeForce RTX 3090": 71,  # GA102 architecture, appendix A
}


def flops_of(config: vitrail.ViTConfig) -> int:
    """Return the operations of a forward pass of one image; a multiplication and an addition are two."""
    with torch.device("meta"):
        model = vitrail.ViTModel(config).eval()
        pixel_values = torch.empty(1, config.num_channels, *config.image_shape)
    # Of attention, the counter knows the products of the math kernel on any device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values)
    return counter.get_total_flops()
