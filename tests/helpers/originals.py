"""Forward passes of DINO, DINOv2 and Google, written down from their code, on the tensors and names of their files."""

import math

import torch
import torch.nn.functional as F

EPSILON = 1e-6


def layer_norm(tokens, scale, bias):
    return F.layer_norm(tokens, scale.shape, scale, bias, EPSILON)


def resized_positions(patches, grid, *, offset=0.0, mode="bicubic", **options):
    """Positions (1, N, D) of a square grid at another.

    Source: vision_transformer.py of dino and dinov2, interpolate_pos_encoding; vit_jax/checkpoint.py, interpolate_posembed.
    """
    side = math.isqrt(patches.shape[1])
    image = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = [(length + offset) / side for length in grid] if offset else None
    image = F.interpolate(image, size=None if offset else grid, scale_factor=scale, mode=mode, **options)
    return image.flatten(2).transpose(1, 2)


@torch.no_grad()
def dino(tensors, images, num_heads):
    """Tokens after the final norm, from a file of DINO or DINOv2."""
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    grid = tuple(length // patch for length in images.shape[-2:])
    tokens = F.conv2d(images, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=patch)
    tokens = tokens.flatten(2).transpose(1, 2)
    positions, registers = tensors["pos_embed"], tensors.get("register_tokens")
    if grid[0] != grid[1] or grid[0] ** 2 != positions.shape[1] - 1:
        rule = {"offset": 0.1} if registers is None else {"antialias": True}
        positions = torch.cat([positions[:, :1], resized_positions(positions[:, 1:], grid, **rule)], dim=1)
    tokens = torch.cat([tensors["cls_token"].expand(len(images), -1, -1), tokens], dim=1) + positions
    if registers is not None:
        tokens = torch.cat([tokens[:, :1], registers.expand(len(images), -1, -1), tokens[:, 1:]], dim=1)
    block = 0
    while f"blocks.{block}.norm1.weight" in tensors:
        names = {name.removeprefix(f"blocks.{block}."): tensor for name, tensor in tensors.items() if f"blocks.{block}." in name}
        branch = layer_norm(tokens, names["norm1.weight"], names["norm1.bias"])
        qkv = F.linear(branch, names["attn.qkv.weight"], names.get("attn.qkv.bias"))
        query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        branch = F.linear((weights @ value).transpose(1, 2).flatten(2), names["attn.proj.weight"], names["attn.proj.bias"])
        tokens = tokens + branch * names.get("ls1.gamma", 1.0)
        branch = layer_norm(tokens, names["norm2.weight"], names["norm2.bias"])
        if "mlp.w12.weight" in names:
            gate, up = F.linear(branch, names["mlp.w12.weight"], names["mlp.w12.bias"]).chunk(2, dim=-1)
            branch = F.linear(F.silu(gate) * up, names["mlp.w3.weight"], names["mlp.w3.bias"])
        else:
            branch = F.gelu(F.linear(branch, names["mlp.fc1.weight"], names["mlp.fc1.bias"]))
            branch = F.linear(branch, names["mlp.fc2.weight"], names["mlp.fc2.bias"])
        tokens = tokens + branch * names.get("ls2.gamma", 1.0)
        block += 1
    return layer_norm(tokens, tensors["norm.weight"], tensors["norm.bias"])


@torch.no_grad()
def google(arrays, images):
    """Tokens after the final norm and, with a head, the logits: vision_transformer/vit_jax/models_vit.py; NHWC in flax."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    kernel = tensors["embedding/kernel"]  # (h, w, in, out)
    patches = F.conv2d(images, kernel.permute(3, 2, 0, 1), tensors["embedding/bias"], stride=kernel.shape[:2])
    positions = tensors["Transformer/posembed_input/pos_embedding"]
    resized = resized_positions(positions[:, 1:], patches.shape[-2:], mode="bilinear", align_corners=True)
    positions = torch.cat([positions[:, :1], resized], dim=1)
    tokens = torch.cat([tensors["cls"].expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1) + positions
    block = 0
    while f"Transformer/encoderblock_{block}/LayerNorm_0/scale" in tensors:
        prefix = f"Transformer/encoderblock_{block}/"
        names = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        branch = layer_norm(tokens, names["LayerNorm_0/scale"], names["LayerNorm_0/bias"])
        query, key, value = (
            torch.einsum("bld,dak->balk", branch, names[f"MultiHeadDotProductAttention_1/{part}/kernel"])
            + names[f"MultiHeadDotProductAttention_1/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        weights = (query / math.sqrt(query.shape[-1]) @ key.transpose(-1, -2)).softmax(dim=-1)
        branch = torch.einsum("balk,akd->bld", weights @ value, names["MultiHeadDotProductAttention_1/out/kernel"])
        tokens = tokens + branch + names["MultiHeadDotProductAttention_1/out/bias"]
        branch = layer_norm(tokens, names["LayerNorm_2/scale"], names["LayerNorm_2/bias"])
        branch = F.gelu(branch @ names["MlpBlock_3/Dense_0/kernel"] + names["MlpBlock_3/Dense_0/bias"], approximate="tanh")
        tokens = tokens + branch @ names["MlpBlock_3/Dense_1/kernel"] + names["MlpBlock_3/Dense_1/bias"]
        block += 1
    features = layer_norm(tokens, tensors["Transformer/encoder_norm/scale"], tensors["Transformer/encoder_norm/bias"])
    outputs = {"features": features, "pooled": features[:, 0]}
    if "pre_logits/kernel" in tensors:
        outputs["pooled"] = torch.tanh(outputs["pooled"] @ tensors["pre_logits/kernel"] + tensors["pre_logits/bias"])
    if "head/kernel" in tensors:
        outputs["logits"] = outputs["pooled"] @ tensors["head/kernel"] + tensors["head/bias"]
    return outputs
