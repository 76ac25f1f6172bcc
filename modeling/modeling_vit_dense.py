"""Dense prediction on the encoder: a class or a depth for each pixel, with the heads of DINOv2 and DINOv3.

    pixels -> padding to whole patches -> encoder -> tokens of some blocks -> head -> logits, or depth in meters

Everything in which published heads differ is a field of `ViTConfig`. Shape letters: B batch, C channels, H W pixels, h w patches,
D hidden size, K classes, Z depth bins.

Sources: DINOv2 (arXiv 2304.07193), DINOv3 (arXiv 2508.10104), DPT (arXiv 2103.13413), bins of depth (AdaBins, arXiv 2011.14141).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_vit import ViTConfig
from .modeling_vit import ViTModel, ViTModelOutput, ViTPreTrainedModel, _only

BATCH_NORM_EPS, BATCH_NORM_MOMENTUM = 1e-5, 0.1  # torch's defaults, which the originals keep
MAX_ASPECT = 4  # of an image that `segment` resizes: mmsegmentation's (2048, 512) and (2560, 640)
MIXED_LOG_SCALE = 8  # CHMv2: its bins end at an eighth of the largest depth
BIN_OFFSETS = {"linear": 0.1, "mixed_log": 1e-8}  # added to the weights of the bins before they are normalized

Tokens = tuple[torch.Tensor, torch.Tensor | None]
"""The patch tokens of a block as a map (B, D, h, w), and its [CLS] token (B, D)."""


# --------------------------------------------------------------------------------------------------------------- whole images


def pad_to_patches(pixel_values: torch.Tensor, patch_shape: tuple[int, int]) -> torch.Tensor:
    """Pad images (B, C, H, W) with zeros to whole patches, half on each side, the odd row or column at the end."""
    missing = [
        (length + patch - 1) // patch * patch - length for length, patch in zip(pixel_values.shape[-2:], patch_shape, strict=True)
    ]
    (top, bottom), (left, right) = ((length // 2, length - length // 2) for length in missing)
    return F.pad(pixel_values, (left, right, top, bottom))


def resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize maps (B, C, H, W) bilinearly, without antialiasing, as every original does."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def double(maps: torch.Tensor) -> torch.Tensor:
    """Double the sides of maps (B, C, H, W) bilinearly, with aligned corners: DPT's rule."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def windows(length: int, window: int, stride: int) -> Iterator[slice]:
    """Yield the windows along one side of an image; the last one is moved back to end at the border."""
    for index in range(max(-(-(length - window) // stride), 0) + 1):
        end = min(index * stride + window, length)
        yield slice(max(end - window, 0), end)


def at_scale(images: torch.Tensor, size: int, scale: float) -> torch.Tensor:
    """Resize images (B, C, H, W) so that the shorter side is `size * scale`, by the rounding of mmcv's imrescale."""
    height, width = images.shape[-2:]
    factor = min(int(size * scale) / min(height, width), int(MAX_ASPECT * size * scale) / max(height, width))
    resized = int(height * factor + 0.5), int(width * factor + 0.5)
    return images if resized == (height, width) else resize(images, resized)


def slide(
    predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, window: int | None, stride: int | None
) -> torch.Tensor:
    """Return logits (B, K, H, W) of images, averaged where windows overlap; see `class_probabilities`."""
    height, width = images.shape[-2:]
    if window is None or stride is None:
        window = stride = max(height, width)
    total, count = images.new_zeros(()), images.new_zeros(height, width, dtype=torch.float32)
    for rows in windows(height, window, stride):
        for columns in windows(width, window, stride):
            part = images[..., rows, columns]
            logits = resize(predict(part).float(), part.shape[-2:])
            if not total.ndim:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[..., rows, columns] += logits
            count[rows, columns] += 1
    return total / count


@torch.no_grad()
def class_probabilities(
    predict: Callable[[torch.Tensor], torch.Tensor],
    config: ViTConfig,
    pixel_values: torch.Tensor,
    *,
    size: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
) -> torch.Tensor:
    """Return what `ViTForSemanticSegmentation.segment` returns, for any way to run the model.

    predict: maps (B, C, H, W) to logits (B, K, h, w).
    """
    height, width = pixel_values.shape[-2:]
    size = size or config.segmentation_size or min(height, width)
    window = window or config.segmentation_window
    stride = stride or config.segmentation_stride or window
    variants = []
    for scale in scales or config.segmentation_scales:
        images = at_scale(pixel_values, size, scale)
        for mirrored in (False, True) if (config.segmentation_flip if flip is None else flip) else (False,):
            logits = slide(predict, images.flip(-1) if mirrored else images, window, stride)
            probabilities = resize(logits, (height, width)).softmax(dim=1)
            variants.append(probabilities.flip(-1) if mirrored else probabilities)
    return torch.stack(variants).mean(dim=0) if len(variants) > 1 else variants[0]


# ---------------------------------------------------------------------------------------------------------------------- layers


class ViTBatchNorm(nn.Module):
    """Batch norm of maps (B, C, H, W): nn.BatchNorm2d without its count of batches, an integer that only training reads."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            maps,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=BATCH_NORM_MOMENTUM,
            eps=BATCH_NORM_EPS,
        )


class ViTSegmentationHead(nn.Module):
    """Batch norm and a 1x1 convolution on the patch tokens of one or several blocks."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        num_features = config.hidden_size * len(config.dense_layer_indices)
        self.batch_norm = ViTBatchNorm(num_features)
        self.classifier = nn.Conv2d(num_features, config.num_labels, kernel_size=1)

    def forward(self, tokens: Sequence[Tokens]) -> torch.Tensor:
        """Return logits (B, K, h, w)."""
        return self.classifier(self.batch_norm(torch.cat([patches for patches, _ in tokens], dim=1)))


class ViTLinearDepthHead(nn.Module):
    """A 1x1 convolution on the tokens of one or several blocks."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.reads_cls = config.depth_readout == "concatenate"
        self.upsampling = config.depth_upsampling
        num_features = config.hidden_size * len(config.dense_layer_indices) * (1 + self.reads_cls)
        self.batch_norm = ViTBatchNorm(num_features) if config.depth_batch_norm else None
        self.projection = nn.Conv2d(num_features, config.depth_num_bins, kernel_size=1)

    def forward(self, tokens: Sequence[Tokens]) -> torch.Tensor:
        """Return logits of bins, (B, Z, h', w')."""
        maps = torch.cat([with_cls(patches, cls_token) if self.reads_cls else patches for patches, cls_token in tokens], dim=1)
        if self.upsampling > 1:
            maps = F.interpolate(maps, scale_factor=self.upsampling, mode="bilinear", align_corners=False)
        return self.projection(maps if self.batch_norm is None else self.batch_norm(maps))


def with_cls(patches: torch.Tensor, cls_token: torch.Tensor | None) -> torch.Tensor:
    """Append [CLS] to each patch token: (B, 2 D, h, w)."""
    assert cls_token is not None
    return torch.cat((patches, cls_token[:, :, None, None].expand_as(patches)), dim=1)


class ViTReassemble(nn.Module):
    """The tokens of a block as a map of DPT: with [CLS] projected in, reduced to the channels of its level, and resized."""

    def __init__(self, config: ViTConfig, level: int) -> None:
        super().__init__()
        hidden_size, size = config.hidden_size, config.level_sizes[level]
        self.batch_norm = ViTBatchNorm(hidden_size) if config.depth_batch_norm else None
        self.readout = nn.Linear(2 * hidden_size, hidden_size) if config.depth_readout == "project" else None
        self.projection = nn.Conv2d(hidden_size, size, kernel_size=1)
        resizes = (  # to 4, 2, 1 and 1/2 times the patch grid
            lambda: nn.ConvTranspose2d(size, size, kernel_size=4, stride=4),
            lambda: nn.ConvTranspose2d(size, size, kernel_size=2, stride=2),
            lambda: None,
            lambda: nn.Conv2d(size, size, kernel_size=3, stride=2, padding=1),
        )
        self.resize = resizes[level]()
        self.convolution = nn.Conv2d(size, config.depth_fusion_size, kernel_size=3, padding=1, bias=False)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        maps, cls_token = tokens
        if self.batch_norm is not None:
            maps = self.batch_norm(maps)
        if self.readout is not None:
            maps = F.gelu(self.readout(with_cls(maps, cls_token).movedim(1, -1))).movedim(-1, 1)
        maps = self.projection(maps)
        return self.convolution(maps if self.resize is None else self.resize(maps))


class ViTResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, and a residual connection."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size, bias = config.depth_fusion_size, config.depth_fusion_bias
        self.convolution1 = nn.Conv2d(size, size, kernel_size=3, padding=1, bias=bias)
        self.convolution2 = nn.Conv2d(size, size, kernel_size=3, padding=1, bias=bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.convolution2(F.relu(self.convolution1(F.relu(maps))))


class ViTFusion(nn.Module):
    """Add the map of a level to the fused map of coarser levels, and enlarge the sum twice; the coarsest level comes alone."""

    def __init__(self, config: ViTConfig, is_first: bool) -> None:
        super().__init__()
        self.residual1 = None if is_first else ViTResidualUnit(config)
        self.residual2 = ViTResidualUnit(config)
        self.projection = nn.Conv2d(config.depth_fusion_size, config.depth_fusion_size, kernel_size=1)

    def forward(self, fused: torch.Tensor, maps: torch.Tensor | None = None) -> torch.Tensor:
        if self.residual1 is not None:
            assert maps is not None
            # The strided convolution rounds an odd grid up; a graph of any size has no branches
            if torch.compiler.is_exporting() or maps.shape[-2:] != fused.shape[-2:]:
                maps = resize(maps, fused.shape[-2:])
            fused = fused + self.residual1(maps)
        return self.projection(double(self.residual2(fused)))


class ViTDPTHead(nn.Module):
    """DPT (arXiv 2103.13413): four blocks become maps of four scales, which are fused from coarse to fine."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size, hidden_size = config.depth_fusion_size, config.depth_hidden_size
        self.levels = nn.ModuleList(ViTReassemble(config, level) for level in range(4))
        self.fusion = nn.ModuleList(ViTFusion(config, is_first=index == 0) for index in range(4))
        self.projection = nn.Conv2d(size, size, kernel_size=3, padding=1) if config.depth_fusion_projection else None
        self.convolution1 = nn.Conv2d(size, size // 2, kernel_size=3, padding=1)
        self.convolution2 = nn.Conv2d(size // 2, hidden_size, kernel_size=3, padding=1)
        self.convolution3 = nn.Conv2d(hidden_size, config.depth_num_bins, kernel_size=1)

    def forward(self, tokens: Sequence[Tokens]) -> torch.Tensor:
        """Return logits of bins, (B, Z, 16 h, 16 w)."""
        maps = [level(one) for level, one in zip(self.levels, tokens, strict=True)]
        fused = self.fusion[0](maps[3])
        for index in (1, 2, 3):
            fused = self.fusion[index](fused, maps[3 - index])
        if self.projection is not None:
            fused = F.relu(self.projection(fused))
        fused = double(self.convolution1(fused))
        return self.convolution3(F.relu(self.convolution2(fused)))


DEPTH_HEADS = {"linear": ViTLinearDepthHead, "dpt": ViTDPTHead}


def depth_bins(config: ViTConfig, device: torch.device) -> torch.Tensor:
    """Return the depth of each bin in meters, (Z,)."""
    low, high = config.depth_range
    number = config.depth_num_bins
    if config.depth_bins == "linear":
        return torch.linspace(low, high, number, device=device)
    high = high / MIXED_LOG_SCALE
    logarithmic = torch.linspace(math.log(low), math.log(high), number, device=device).exp()
    even = torch.linspace(low, high, number, device=device)
    share = torch.linspace(1.0, 0.0, number, device=device)
    return (share * logarithmic + (1.0 - share) * even) * MIXED_LOG_SCALE


def depth_from_logits(logits: torch.Tensor, config: ViTConfig) -> torch.Tensor:
    """Return the depth in meters, (B, h, w), of the logits of a head, (B, Z, h, w): the mean of the bins by weight; in float32."""
    positive = F.relu(logits.float())
    if config.depth_num_bins == 1:
        return positive[:, 0] + config.depth_range[0]
    weights = positive + BIN_OFFSETS[config.depth_bins]
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.einsum("bzhw,z->bhw", weights, depth_bins(config, logits.device))


def depth_loss(depth: torch.Tensor, labels: torch.Tensor, largest: float) -> torch.Tensor:
    """Return the scale-invariant log loss of depths in meters over the pixels whose label lies above 0 and up to `largest`.

    Eigen et al., arXiv 1406.2283, in the form of AdaBins (arXiv 2011.14141) and DINOv2 (eval/depth, SigLoss): the root of the variance
    plus 0.15 times the squared mean of the difference of logarithms, with 0.001 added to both depths.
    """
    valid = (labels > 0) & (labels <= largest)
    difference = (depth.float()[valid] + 0.001).log() - (labels.float()[valid] + 0.001).log()
    return (difference.var() + 0.15 * difference.mean().square()).sqrt()


# ---------------------------------------------------------------------------------------------------------------------- models


class ViTDensePreTrainedModel(ViTPreTrainedModel):
    """The encoder and the tokens that a dense head reads."""

    _no_split_modules = [*ViTPreTrainedModel._no_split_modules, "ViTReassemble", "ViTFusion"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, ViTBatchNorm):
            for tensor in (module.weight, module.running_var):
                init.ones_(tensor)
            for tensor in (module.bias, module.running_mean):
                init.zeros_(tensor)

    def _encode(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None,
        output_attentions: bool | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[list[Tokens], ViTModelOutput]:
        """Return the tokens that the head reads, and the outputs of the encoder, with the hidden states that the caller asks for."""
        layers = self.config.dense_layer_indices
        selected = self._selected_hidden_states(output_hidden_states)
        outputs: ViTModelOutput = self.vit(
            pad_to_patches(pixel_values, self.config.patch_shape),
            output_hidden_states=sorted(selected | {layer + 1 for layer in layers}),
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        tokens = [self._tokens_of(outputs.hidden_states[layer + 1], outputs.patch_grid) for layer in layers]
        outputs.hidden_states = _only(selected, outputs.hidden_states)
        return tokens, outputs

    def _tokens_of(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> Tokens:
        if self.config.dense_norm:
            hidden_states = self.vit.norm_tokens(hidden_states)
        patches = hidden_states[:, self.config.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid).contiguous()
        return patches, hidden_states[:, 0] if self.config.use_cls_token else None


class ViTForSemanticSegmentation(ViTDensePreTrainedModel):
    """The encoder and a linear segmentation head: a class for each pixel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = ViTModel(config)
        self.segmentation_head = ViTSegmentationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Return logits (B, K, h, w), one for each patch of the padded images, and, with `labels`, the cross entropy at their size.

        Resized to H and W, bilinearly, the logits are those of the original; `post_process_semantic_segmentation` of the image processor
        does so.

        Args:
            pixel_values: (B, C, H, W) of any size.
            labels: (B, H, W) class indices; `semantic_loss_ignore_index` marks pixels to leave out.
        """
        tokens, outputs = self._encode(pixel_values, output_hidden_states, output_attentions, **kwargs)
        logits = self.segmentation_head(tokens)
        loss = None
        if labels is not None:
            resized = resize(logits.float(), labels.shape[-2:])
            loss = F.cross_entropy(resized, labels.long(), ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def segment(
        self,
        pixel_values: torch.Tensor,
        *,
        size: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> torch.Tensor:
        """Return the probability of each class at each pixel, (B, K, H, W), as the original evaluation does: with sliding windows.

        For each scale, images are resized, windows slide over them, and the logits are averaged where windows overlap and resized to H
        and W. The probabilities of all scales, and of mirrored images, are averaged. Everything that is not given comes from the config.

        Args:
            pixel_values: (B, C, H, W), normalized, of any size.
            size: the shorter side to resize images to; the longer one becomes at most 4 times as long.
            window, stride: side and stride of the windows, in pixels.
            scales: factors of `size`.
            flip: whether to average with the result of the mirrored images.
        """
        return class_probabilities(
            lambda images: self(images, return_dict=True).logits,
            self.config,
            pixel_values,
            size=size,
            window=window,
            stride=stride,
            scales=scales,
            flip=flip,
        )


class ViTForDepthEstimation(ViTDensePreTrainedModel):
    """The encoder and a linear or a DPT depth head: the depth of each pixel, in meters."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config)
        self.depth_head = DEPTH_HEADS[config.depth_head](config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DepthEstimatorOutput:
        """Return `predicted_depth` (B, H, W) in meters and, with `labels`, the scale-invariant log loss at their size.

        This is the whole inference of the original: images are padded to whole patches, and the map of the head is clamped to
        `depth_range`, where `depth_clamp` is set, and resized to H and W.

        Args:
            pixel_values: (B, C, H, W) of any size.
            labels: (B, H, W) depths in meters; pixels without a depth are 0.
        """
        tokens, outputs = self._encode(pixel_values, output_hidden_states, output_attentions, **kwargs)
        depth = depth_from_logits(self.depth_head(tokens), self.config)
        if self.config.depth_clamp:
            depth = depth.clamp(*self.config.depth_range)
        loss = None
        if labels is not None:
            resized = resize(depth[:, None], labels.shape[-2:])[:, 0]
            loss = depth_loss(resized, labels, self.config.depth_range[1])
        return DepthEstimatorOutput(
            loss=loss,
            predicted_depth=resize(depth[:, None], pixel_values.shape[-2:])[:, 0],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["ViTForDepthEstimation", "ViTForSemanticSegmentation"]
