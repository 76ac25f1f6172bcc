"""Configuration of the Vision Transformer for the DINO, DINOv2, DINOv3, Google and timm families."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

if TYPE_CHECKING:
    Size = int | tuple[int, int]  # as the config keeps it
    Numbers = tuple[float, ...]
else:
    Size = int | list[int] | tuple[int, int]  # as it may be given
    Numbers = list[float | int] | tuple[float | int, ...]

logger = logging.get_logger(__name__)

# The largest values that a config may have, far above those of published models: a file with larger ones is damaged, or a trap
LIMITS = {
    "hidden_size": 2**16,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "intermediate_size": 2**18,
    "num_channels": 2**12,
    "relative_position_hidden_size": 2**16,
    "representation_size": 2**16,
    "num_register_tokens": 2**12,
    "num_labels": 2**20,
    "depth_upsampling": 2**6,
    "depth_fusion_size": 2**16,
    "depth_hidden_size": 2**16,
    "depth_num_bins": 2**16,
}
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")
MAX_SIDE = 2**16  # pixels
MAX_SCALE = 16
MAX_FLOAT = 3.4e38  # of float32
# The attention that a config.json may choose. transformers takes any other name for a kernel to download and run
ATTENTION = re.compile(r"sdpa|eager|flex_attention|flash_attention_\w+")


@strict
class ViTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of a Vision Transformer. Everything in which the published families differ is a field.

    The defaults are those of DINO's ViT-B/16. `image_size` and `patch_size` are one number where height and width
    are equal, as in transformers' own configs, or else a pair; `image_shape` and `patch_shape` are always (height, width).

    Size:
        hidden_size (`int`, defaults to 768): width D of each token.
        num_hidden_layers (`int`, defaults to 12): number of blocks.
        num_attention_heads (`int`, defaults to 12): number of attention heads A; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): width of the hidden layer of the MLP; for SwiGLU, the width after gating.
        image_size (`int` or pair, defaults to 224): height and width of the images, in pixels, that the
            position embeddings were trained for.
        patch_size (`int` or pair, defaults to 16): height and width of a patch, in pixels.
        num_channels (`int`, defaults to 3): number of image channels.

    Tokens (their order in the sequence is [CLS], registers, patches):
        use_cls_token (`bool`, defaults to `True`)
        num_register_tokens (`int`, defaults to 0): registers (arXiv 2309.16588), inserted after the positions are added.
        use_mask_token (`bool`, defaults to `False`): whether a learned token replaces masked patches.

    Positions:
        position_embedding_type (`str`, defaults to `"absolute"`): `"absolute"` (one learned vector per token),
            `"relative_table"` (one learned bias per offset and head, as in Swin and BEiT), `"relative_mlp"` (a small MLP computes
            the bias from log-spaced offsets, timm's "cr" form of Swin v2) or `"rotary"` (each head turns the queries and keys of
            patches by angles that grow with row and column, DINOv3, arXiv 2508.10104).
        use_cls_position (`bool`, defaults to `True`): whether [CLS] has an absolute position, too.
        share_relative_position (`bool`, defaults to `False`): whether all blocks share one relative bias.
        relative_position_hidden_size (`int`, defaults to 128): hidden width of the relative MLP.
        rope_theta (`float`, defaults to 100.0): base of the rotary periods of a new model; published weights bring their own periods.
        rope_shift, rope_jitter, rope_rescale (`float`, *optional*): in training, rotary coordinates from -1 to 1 are shifted by up to
            `rope_shift`, and scaled by a factor from 1 / x to x: one per axis (jitter), and one for both axes (rescale).
        position_interpolation_mode (`str`, defaults to `"bicubic"`): `"bicubic"` or `"bilinear"`: how absolute positions
            are resized to another patch grid.
        position_interpolation_offset (`float`, defaults to 0.0): added to the target grid before the scale is computed: 0.1 for
            DINO and for DINOv2 without registers.
        position_interpolation_antialias (`bool`, defaults to `False`)
        position_interpolation_align_corners (`bool`, defaults to `False`): whether the corners of both grids coincide;
            with `"bilinear"` this is Google's rule.

    Blocks:
        norm_position (`str`, defaults to `"pre"`): `"pre"`, x + f(norm(x)), or `"residual_post"`, x + norm(f(x)).
        qkv_bias (`bool`, defaults to `True`)
        mlp_type (`str`, defaults to `"mlp"`): `"mlp"`, or with a gate `"swiglu"` or `"geglu"` (arXiv 2002.05202).
        hidden_act (`str`, defaults to `"gelu"`): activation of an MLP without a gate, a key of transformers' `ACT2FN`; flax's GELU is
            `"gelu_pytorch_tanh"`.
        layer_scale_init_value (`float`, *optional*): initial value of LayerScale (arXiv 2103.17239); `None` for no LayerScale.
        layer_norm_eps (`float`, defaults to 1e-6)
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, defaults to 0.0)
        drop_path_rate (`float`, defaults to 0.0): rate of stochastic depth (arXiv 1603.09382) in the last block.
        drop_path_schedule (`str`, defaults to `"linear"`): `"linear"`, from 0 in the first block, or `"constant"`, the same in all.
        drop_path_mode (`str`, defaults to `"image"`): `"image"` draws for each image whether a branch is dropped; `"batch"` drops it for
            a fixed number of the images of a batch, and does not compute it for these, as DINOv2 (arXiv 2304.07193, section 5).
        initializer_range (`float`, defaults to 0.02): standard deviation of the truncated normal that initializes weights.

    Output:
        pooling (`str`, defaults to `"cls"`): `pooler_output` is `"cls"` ([CLS]), `"avg"` (mean of the patch tokens) or `"cls+avg"`
            (both, concatenated).
        norm_before_pooling (`bool`, defaults to `True`): whether the final norm is applied to the tokens; otherwise it is
            applied to the pooled vector (timm's fc_norm).
        separate_cls_norm (`bool`, defaults to `False`): whether [CLS] and registers have a final norm of their own.
        representation_size (`int`, *optional*): width of a tanh layer after pooling (Google's pre_logits).
        classifier_cls_layers (`int`, defaults to 1): number of last blocks whose normalized [CLS] the classifier reads, in order
            of depth.
        classifier_mean_patch (`bool`, defaults to `False`): whether the classifier also reads the mean patch token of the last
            block. With `classifier_cls_layers=1` and `False`, the classifier reads `pooler_output`.

    Dense heads (`ViTForSemanticSegmentation`, `ViTForDepthEstimation`):
        dense_layers (`list[int]`, *optional*): the blocks whose patch tokens the head reads, in order (0 is the first); the last one by
            default.
        dense_norm (`bool`, defaults to `True`): whether the final norm is applied to these tokens.
        semantic_loss_ignore_index (`int`, defaults to 255): the label of pixels that the loss of a segmentation leaves out.
        segmentation_size, segmentation_window, segmentation_stride (`int`, *optional*): for `segment`: the shorter side that an image is
            resized to, and the side and stride of the windows that slide over it. `None`: the image as it is, in one piece.
        segmentation_scales (`tuple[float, ...]`, defaults to `(1.0,)`): for `segment`: the factors of `segmentation_size`, whose
            probabilities are averaged.
        segmentation_flip (`bool`, defaults to `False`): for `segment`: whether each scale also runs mirrored.
        depth_head (`str`, defaults to `"linear"`): `"linear"` (one 1x1 convolution) or `"dpt"` (arXiv 2103.13413, on four blocks).
        depth_readout (`str`, defaults to `"ignore"`): what becomes of [CLS]: `"ignore"`, `"concatenate"` (appended to each patch token) or
            `"project"` (appended, then a linear layer with GELU).
        depth_batch_norm (`bool`, defaults to `False`): whether a batch norm comes first.
        depth_upsampling (`int`, defaults to 1): factor by which the linear head enlarges the patch grid before the convolution.
        depth_level_sizes (`list[int]`, *optional*): channels of the four levels of DPT; D/8, D/4, D/2 and D by default.
        depth_fusion_size (`int`, defaults to 256): channels where DPT fuses its levels.
        depth_hidden_size (`int`, defaults to 32): channels before the last convolution of DPT.
        depth_fusion_bias (`bool`, defaults to `False`): whether the residual units of DPT have biases.
        depth_fusion_projection (`bool`, defaults to `True`): whether a convolution with ReLU follows the fusion.
        depth_num_bins (`int`, defaults to 256): number of bins that the depth is the weighted mean of; 1: the depth itself is predicted.
        depth_bins (`str`, defaults to `"linear"`): `"linear"` (evenly spaced) or `"mixed_log"` (log-spaced at first, then even: CHMv2).
        depth_range (pair of `float`, defaults to `(0.001, 10.0)`): smallest and largest depth, in meters.
        depth_clamp (`bool`, defaults to `False`): whether depths are clamped to `depth_range`.

    Backbone (`ViTBackbone`):
        out_features, out_indices: the stages to return, as for every backbone in transformers.
        apply_layernorm (`bool`, defaults to `True`): whether the final norm is applied to feature maps.
        reshape_hidden_states (`bool`, defaults to `True`): return feature maps (B, D, h, w) instead of sequences (B, L, D).
        return_register_tokens (`bool`, defaults to `True`): whether these sequences hold the registers; the necks of transformers' DPT and
            Depth Anything read [CLS] and patches alone.

    Raises:
        StrictDataclassError: a field has the wrong type, or fields contradict each other.
    """

    model_type = "vitrail"
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]  # noqa: RUF012  # transformers' own form; what Trainer.evaluate leaves out of the predictions
    after_save = None  # a function of the folder, called by save_pretrained; a class attribute, which vitrail sets to add its code

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: Size = 224
    patch_size: Size = 16
    num_channels: int = 3

    use_cls_token: bool = True
    num_register_tokens: int = 0
    use_mask_token: bool = False

    position_embedding_type: Literal["absolute", "relative_table", "relative_mlp", "rotary"] = "absolute"
    use_cls_position: bool = True
    share_relative_position: bool = False
    relative_position_hidden_size: int = 128
    rope_theta: float | int = 100.0
    rope_shift: float | int | None = None
    rope_jitter: float | int | None = None
    rope_rescale: float | int | None = None
    position_interpolation_mode: Literal["bicubic", "bilinear"] = "bicubic"
    position_interpolation_offset: float | int = 0.0
    position_interpolation_antialias: bool = False
    position_interpolation_align_corners: bool = False

    norm_position: Literal["pre", "residual_post"] = "pre"
    qkv_bias: bool = True
    mlp_type: Literal["mlp", "swiglu", "geglu"] = "mlp"
    hidden_act: str = "gelu"
    layer_scale_init_value: float | int | None = None
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    drop_path_mode: Literal["image", "batch"] = "image"
    initializer_range: float = 0.02

    pooling: Literal["cls", "avg", "cls+avg"] = "cls"
    norm_before_pooling: bool = True
    separate_cls_norm: bool = False
    representation_size: int | None = None
    classifier_cls_layers: int = 1
    classifier_mean_patch: bool = False

    dense_layers: list[int] | None = None
    dense_norm: bool = True
    semantic_loss_ignore_index: int = 255
    segmentation_size: int | None = None
    segmentation_window: int | None = None
    segmentation_stride: int | None = None
    segmentation_scales: Numbers = (1.0,)
    segmentation_flip: bool = False
    depth_head: Literal["linear", "dpt"] = "linear"
    depth_readout: Literal["ignore", "concatenate", "project"] = "ignore"
    depth_batch_norm: bool = False
    depth_upsampling: int = 1
    depth_level_sizes: list[int] | None = None
    depth_fusion_size: int = 256
    depth_hidden_size: int = 32
    depth_fusion_bias: bool = False
    depth_fusion_projection: bool = True
    depth_num_bins: int = 256
    depth_bins: Literal["linear", "mixed_log"] = "linear"
    depth_range: Numbers = (0.001, 10.0)
    depth_clamp: bool = False

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    return_register_tokens: bool = True

    def __post_init__(self, **kwargs):  # type: ignore[no-untyped-def]  # transformers' own signature
        self.image_size = _as_pair("image_size", self.image_size)
        self.patch_size = _as_pair("patch_size", self.patch_size)
        for name, value in (("num_hidden_layers", self.num_hidden_layers), ("num_labels", kwargs.get("num_labels"))):
            _check_count(name, value, 0)  # here, because lists of these lengths follow
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: object) -> None:  # `from_pretrained(…, image_size=…)` sets fields later
        if name in ("image_size", "patch_size") and isinstance(value, int | list | tuple):
            pair = _as_pair(name, value)
            value = pair[0] if pair[0] == pair[1] else pair
        elif name in ("depth_range", "segmentation_scales") and isinstance(value, list | tuple) and _are_numbers(value):
            value = tuple(float(number) for number in value)
        super().__setattr__(name, value)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json; raise ValueError for that of another model, whose weights would not be found under our names."""
        content, unused = super().get_config_dict(*args, **kwargs)
        if content.get("model_type") != cls.model_type:
            found = content.get("model_type") or content.get("architecture")
            raise ValueError(
                f'The config.json is of the model type "{found}"; expected "{cls.model_type}". Load the checkpoint with vitrail.load, '
                "which reads every supported format, or convert it with `vitrail convert`."
            )
        return content, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config from the content of a config.json, without an attention that transformers would download."""
        config_dict, ignored = without_foreign_attention(config_dict)
        if ignored is not None:
            logger.warning(ignored)
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, then call `after_save` with the folder, then upload it if `push_to_hub`.

        As in transformers, `auto_map` in the file is an attribute from then on: the file read again equals this config.
        """
        super().save_pretrained(save_directory, **({} if push_to_hub else kwargs))
        after_save = type(self).after_save
        if after_save is not None:
            after_save(Path(save_directory))
            self.auto_map = json.loads(Path(save_directory, "config.json").read_text(encoding="utf-8")).get("auto_map")
        if push_to_hub:  # not before the folder is complete
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    @property
    def image_shape(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        return _as_pair("image_size", self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """`patch_size` as (height, width)."""
        return _as_pair("patch_size", self.patch_size)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Number of rows and columns of patches, (h, w), at `image_size`."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return height // patch_height, width // patch_width

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: [CLS] and registers."""
        return int(self.use_cls_token) + self.num_register_tokens

    @property
    def pooled_size(self) -> int:
        """Width of `pooler_output`."""
        return self.representation_size or self.hidden_size * (2 if self.pooling == "cls+avg" else 1)

    @property
    def classifier_input_size(self) -> int:
        """Width of the input of the classifier."""
        if self.classifier_reads_tokens:
            return self.hidden_size * (self.classifier_cls_layers + int(self.classifier_mean_patch))
        return self.pooled_size

    @property
    def dense_layer_indices(self) -> tuple[int, ...]:
        """The blocks that a dense head reads, 0 the first."""
        return tuple(self.dense_layers or (self.num_hidden_layers - 1,))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Channels of the four levels of DPT."""
        return tuple(self.depth_level_sizes or (max(self.hidden_size // divisor, 1) for divisor in (8, 4, 2, 1)))

    @property
    def classifier_reads_tokens(self) -> bool:
        """Whether the classifier reads [CLS] tokens of several blocks or the mean patch, instead of `pooler_output`."""
        return self.classifier_cls_layers > 1 or self.classifier_mean_patch

    def validate_architecture(self) -> None:
        """Raise ValueError if fields contradict each other; `@strict` calls this after construction."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"image_size {height}x{width} is not a multiple of patch_size {patch_height}x{patch_width}: write image_size="
                f"({_nearest_multiple(height, patch_height)}, {_nearest_multiple(width, patch_width)})."
            )
        for name in LIMITS:
            _check_count(name, getattr(self, name), int(name not in ("num_register_tokens", "num_labels")))
        for name in ("layer_norm_eps", "initializer_range", "layer_scale_init_value"):
            value = getattr(self, name)
            if value is not None and not (abs(value) <= MAX_FLOAT and (value >= 0 or name == "layer_scale_init_value")):
                raise ValueError(f"{name} is {value}: it must be a finite number in float32, and not negative.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be split into num_attention_heads={self.num_attention_heads} equal heads: "
                "choose a number of heads that divides it (published ViTs have heads 64 wide, ViT-H/14 has 80)."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f'hidden_act "{self.hidden_act}" is not an activation of transformers: write for example "gelu" or "gelu_pytorch_tanh".'
            )
        selected = self.output_hidden_states
        indices = selected if isinstance(selected, list | tuple) else [] if selected is None else [selected]
        if not all(isinstance(index, int) for index in indices):
            raise ValueError(
                f"output_hidden_states is {self.output_hidden_states!r}: it must be true, false, or one or several indices of blocks."
            )
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type is {self.problem_type!r}: it must be one of {', '.join(map(repr, PROBLEM_TYPES))}.")
        for name in ("drop_path_rate", "position_interpolation_offset"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and less than 1.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie between 0 and 1.")
        if self.num_register_tokens and self.position_embedding_type.startswith("relative"):
            raise ValueError(
                "Registers have no relative bias in any family: set num_register_tokens=0, or absolute or rotary positions."
            )
        self._validate_rotary()
        if "cls" in self.pooling and not self.use_cls_token:
            raise ValueError(f'pooling="{self.pooling}" needs a [CLS] token: set use_cls_token=True or pooling="avg".')
        if self.pooling == "cls+avg" and not self.norm_before_pooling:
            raise ValueError('pooling="cls+avg" joins two vectors, which one norm cannot follow: set norm_before_pooling=True.')
        if self.separate_cls_norm and not (self.use_cls_token and self.norm_before_pooling):
            raise ValueError(
                "separate_cls_norm needs [CLS] and a norm of tokens: set use_cls_token=True and norm_before_pooling=True."
            )
        if not 1 <= self.classifier_cls_layers <= self.num_hidden_layers:
            raise ValueError(
                f"classifier_cls_layers is {self.classifier_cls_layers}, but the model has {self.num_hidden_layers} blocks: "
                "it must lie between 1 and that number."
            )
        if self.classifier_reads_tokens and not (self.use_cls_token and self.norm_before_pooling):
            raise ValueError(
                "classifier_cls_layers > 1 and classifier_mean_patch read normalized [CLS] tokens: they need use_cls_token=True and "
                "norm_before_pooling=True."
            )
        if self.classifier_reads_tokens and self.representation_size is not None:
            raise ValueError(
                "A classifier that reads tokens bypasses the representation layer: set representation_size=None, or "
                "classifier_cls_layers=1 and classifier_mean_patch=False."
            )
        _check_dense_head(self)
        super().validate_architecture()

    def _validate_rotary(self) -> None:
        if self.position_embedding_type == "rotary" and self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                f"Rotary positions need heads whose width is a multiple of 4, but {self.num_attention_heads} heads of a hidden_size of "
                f"{self.hidden_size} are {self.hidden_size // self.num_attention_heads} wide: choose another num_attention_heads."
            )
        for name, least in (("rope_theta", 1), ("rope_shift", 0), ("rope_jitter", 1), ("rope_rescale", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= MAX_FLOAT:
                raise ValueError(f"{name} is {value}: it must be a finite number, at least {least}.")


def _check_dense_head(config: ViTConfig) -> None:
    """Raise ValueError for fields of a dense head that contradict each other."""
    layers = config.dense_layer_indices
    if config.num_hidden_layers and not all(0 <= layer < config.num_hidden_layers for layer in layers):
        raise ValueError(f"dense_layers is {list(layers)}: choose among the blocks 0 to {config.num_hidden_layers - 1}.")
    if config.depth_head == "dpt" and (len(layers) != 4 or len(config.level_sizes) != 4):
        raise ValueError(
            f'depth_head="dpt" reads four blocks, but dense_layers is {config.dense_layers} and depth_level_sizes is '
            f"{config.depth_level_sizes}: write four numbers each, for example dense_layers=[2, 5, 8, 11] of 12 blocks."
        )
    if config.depth_head == "linear" and config.depth_readout == "project":
        raise ValueError('depth_readout="project" belongs to DPT: write "ignore" or "concatenate", or depth_head="dpt".')
    if config.depth_head == "dpt" and config.depth_readout == "concatenate":
        raise ValueError('depth_readout="concatenate" belongs to the linear head: write "ignore" or "project".')
    if config.depth_readout != "ignore" and not config.use_cls_token:
        raise ValueError(f'depth_readout="{config.depth_readout}" needs a [CLS] token: write depth_readout="ignore".')
    bounds = config.depth_range
    if len(bounds) != 2 or not 0 < bounds[0] < bounds[1] <= MAX_FLOAT:
        raise ValueError(f"depth_range is {bounds}: write the smallest and largest depth in meters, for example (0.001, 10).")
    if not config.segmentation_scales or not all(0 < scale <= MAX_SCALE for scale in config.segmentation_scales):
        raise ValueError(f"segmentation_scales is {config.segmentation_scales}: write numbers above 0, at most {MAX_SCALE}.")
    for name in ("segmentation_size", "segmentation_window", "segmentation_stride"):
        side = getattr(config, name)
        if side is not None and not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{name} is {side}: write a number of pixels from 1 to {MAX_SIDE}, or None.")


def _are_numbers(values: "list[Any] | tuple[Any, ...]") -> bool:
    return all(type(value) in (int, float) for value in values)


def _as_pair(name: str, size: "int | list[int] | tuple[int, int]") -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1 or max(pair) > MAX_SIDE:
        raise ValueError(f"{name} is {size}: write one number of pixels from 1 to {MAX_SIDE}, or a (height, width) pair of them.")
    return pair[0], pair[1]


def _check_count(name: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= LIMITS[name]:
        raise ValueError(f"{name} is {value}: it must be at least {least}, and at most {LIMITS[name]}.")


def without_foreign_attention(config_dict: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the content of a config.json without the names of attention kernels to download, and a warning if it had one."""
    keys = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    named = {key: config_dict[key] for key in keys if config_dict.get(key) is not None}
    foreign = {key: value for key, value in named.items() if not (isinstance(value, str) and ATTENTION.fullmatch(value))}
    if not foreign:
        return config_dict, None
    ignored = (
        f"the attention {next(iter(foreign.values()))!r} that config.json names is ignored: choose one with attn_implementation="
    )
    return {key: value for key, value in config_dict.items() if key not in foreign}, ignored


def _nearest_multiple(length: int, divisor: int) -> int:
    return max(divisor, round(length / divisor) * divisor)


__all__ = ["ViTConfig"]
