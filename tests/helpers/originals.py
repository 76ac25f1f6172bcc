"""Forward passes of DINO, DINOv2, DINOv3 and Google, written down from their code, on the tensors and names of their files."""

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


def turned(states, rows, columns, periods):
    """Queries or keys (B, A, L, d), the patches of which are turned: rope_position_encoding.py and attention.py of dinov3."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows * 2 - 1, (torch.arange(columns) + 0.5) / columns * 2 - 1, indexing="ij")
    angles = 2 * math.pi * torch.cat([axis.flatten()[:, None] / periods for axis in (y, x)], dim=1).repeat(1, 2)
    prefix, patches = states[:, :, : -rows * columns], states[:, :, -rows * columns :]
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([prefix, patches * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()], dim=2)


@torch.no_grad()
def dinov3(tensors, images, num_heads):
    """Tokens after the final norms, from a file of DINOv3: vision_transformer.py of dinov3."""
    epsilon = 1e-5

    def norm(tokens, name):
        return F.layer_norm(tokens, tokens.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)

    def linear(tokens, name):
        return F.linear(tokens, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    weight = tensors["patch_embed.proj.weight"]
    patches = F.conv2d(images, weight, tensors["patch_embed.proj.bias"], stride=weight.shape[-1])
    rows, columns = patches.shape[-2:]
    registers = tensors.get("storage_tokens", torch.zeros(1, 0, patches.shape[1]))
    prefix = torch.cat([tensors["cls_token"], registers], dim=1).expand(len(images), -1, -1)
    tokens = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
    block = 0
    while (name := f"blocks.{block}") and f"{name}.norm1.weight" in tensors:
        qkv = F.linear(norm(tokens, f"{name}.norm1"), tensors[f"{name}.attn.qkv.weight"])
        if f"{name}.attn.qkv.bias" in tensors:
            qkv = qkv + tensors[f"{name}.attn.qkv.bias"] * tensors[f"{name}.attn.qkv.bias_mask"]
        query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (turned(states, rows, columns, tensors["rope_embed.periods"]) for states in (query, key))
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        branch = linear((weights @ value).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        tokens = tokens + branch * tensors.get(f"{name}.ls1.gamma", 1.0)
        branch = norm(tokens, f"{name}.norm2")
        if f"{name}.mlp.w1.weight" in tensors:
            branch = linear(F.silu(linear(branch, f"{name}.mlp.w1")) * linear(branch, f"{name}.mlp.w2"), f"{name}.mlp.w3")
        else:
            branch = linear(F.gelu(linear(branch, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        tokens = tokens + branch * tensors.get(f"{name}.ls2.gamma", 1.0)
        block += 1
    cls_norm = "cls_norm" if "cls_norm.weight" in tensors else "norm"
    return torch.cat([norm(tokens[:, : prefix.shape[1]], cls_norm), norm(tokens[:, prefix.shape[1] :], "norm")], dim=1)


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
