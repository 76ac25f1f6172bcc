"""Ways to run the same weights, which benchmarks compare: transformers, timm, float8, CUDA graphs; and the matrix products of all."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import vitrail

Forward = Callable[[torch.Tensor], torch.Tensor]  # pixel values (B, C, H, W) to the last tokens (B, L, D)


def peers_of(model: vitrail.ViTModel, image_processor: vitrail.VitrailImageProcessor, folder: Path) -> dict[str, Forward]:
    """Transformers and timm, as far as they have such a model and are installed."""
    vitrail.save(model, image_processor, folder / "vitrail", code=False)
    peers: dict[str, Forward] = {}
    if not model.config.position_embedding_type.startswith("relative"):
        import transformers

        vitrail.export_model(folder / "vitrail", folder / "transformers", to="transformers")
        theirs = transformers.AutoModel.from_pretrained(folder / "transformers").to(model.device, model.dtype).eval()
        peers["transformers"] = lambda pixel_values: theirs(pixel_values).last_hidden_state
    if importlib.util.find_spec("timm"):
        import timm

        vitrail.export_model(folder / "vitrail", folder / "timm", to="timm")
        # A model of fixed size, as users of timm make it: it then resizes positions once
        height, width = model.config.image_shape
        timms = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True, img_size=(height, width))
        peers["timm"] = timms.to(model.device, model.dtype).eval().forward_features
    return peers


def in_float8(folder: Path, device: torch.device) -> Forward | None:
    """The model of a folder with weights and activations in float8, by torchao; None where that does not run, and then print why."""
    missing = None
    if not importlib.util.find_spec("torchao"):
        missing = "torchao is not installed"
    elif device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        missing = "it needs a GPU of compute capability 8.9 or more"
    if missing:
        print(f"float8 is left out: {missing}", file=sys.stderr)
        return None
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Float8DynamicActivationFloat8WeightConfig())
    model = vitrail.ViTModel.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16, device_map=device).eval()
    return lambda pixel_values: model(pixel_values).last_hidden_state


def as_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Capture what runs on the GPU as a CUDA graph; return the function that replays it."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries do in their first calls cannot be captured
            run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def matrix_products(config: vitrail.ViTConfig, batch_size: int, like: torch.Tensor) -> Callable[[], None]:
    """Nothing but the matrix products of a forward pass, on numbers of the type and device of `like`: a bound for what is possible."""
    (rows, columns), (patch_height, patch_width) = config.patch_grid, config.patch_shape
    patches, hidden, heads = rows * columns, config.hidden_size, config.num_attention_heads
    tokens = patches + config.num_prefix_tokens
    inner = config.intermediate_size

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=like.device).to(like.dtype)

    pixels = config.num_channels * patch_height * patch_width
    patch_input, patch_weight = tensor(batch_size * patches, pixels), tensor(hidden, pixels)
    sequence, wide = tensor(batch_size * tokens, hidden), tensor(batch_size * tokens, inner)
    gated = 2 if config.mlp_type == "swiglu" else 1
    weights = [tensor(3 * hidden, hidden), tensor(hidden, hidden), tensor(gated * inner, hidden)]
    down = tensor(hidden, inner)
    query, key = (tensor(batch_size, heads, tokens, hidden // heads) for _ in range(2))

    def run() -> None:
        F.linear(patch_input, patch_weight)
        for _ in range(config.num_hidden_layers):
            for weight in weights:
                F.linear(sequence, weight)
            F.linear(wide, down)
            F.scaled_dot_product_attention(query, key, key)

    return run
