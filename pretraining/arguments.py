"""The settings of a run: `transformers.TrainingArguments` with the settings that the methods add."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from transformers import TrainingArguments

from .methods.distillation import DISTANCES
from .methods.losses import CENTERINGS


@dataclass
class PretrainingArguments(TrainingArguments):
    """What all methods have.

    Some fields of `TrainingArguments` have another meaning here. `learning_rate` is the largest one, after the warm-up, for the whole
    batch. `weight_decay` is the first value of its schedule. `lr_scheduler_type` and `warmup_steps` are ignored. With `max_steps`, an
    epoch of these settings is the `num_train_epochs`-th part of the run.

    drop_path_rate: stochastic depth of the student.
    final_weight_decay: last value of the weight decay, which follows a half cosine.
    warmup_epochs: epochs in which the learning rate grows from 0.
    min_learning_rate: last value of the learning rate.
    frozen_blocks: number of first blocks of the backbone that are not trained, nor are the embeddings; 0 trains all.
    lora_rank: rank of adapters (LoRA) on the linear layers of attention and MLP, which are trained in place of the backbone's weights
        and merged into them at the end; 0 trains the weights themselves. Requires peft.
    max_skipped_updates: updates in a row that float16 may skip before the run stops; 0 never stops it.
    knn_margin, knn_patience: a run that starts from a model stops when as many k-NN evaluations in a row are further below the start
        model's accuracy than the margin and two standard errors; `knn_patience=0` never stops it.
    """

    dataloader_drop_last: bool = True
    ddp_find_unused_parameters: bool | None = False
    ddp_broadcast_buffers: bool | None = False  # the center is the same in all processes
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False  # a loss that is not finite ends the run

    POSITIVE: ClassVar[tuple[str, ...]] = ("learning_rate", "num_train_epochs")  # fields above 0
    SHARES: ClassVar[tuple[str, ...]] = ("drop_path_rate", "knn_margin")  # fields from 0 to 1
    COUNTS: ClassVar[tuple[str, ...]] = ("frozen_blocks", "lora_rank", "max_skipped_updates", "knn_patience")  # whole numbers

    drop_path_rate: float = 0.0
    final_weight_decay: float = 0.4
    warmup_epochs: float = 10.0
    min_learning_rate: float = 1e-6
    frozen_blocks: int = 0
    lora_rank: int = 0
    # Limits of a run, chosen by us. The gradient scaler halves its scale with each update that it skips: from 65,536 to 6e-11
    max_skipped_updates: int = 50
    knn_margin: float = 0.05
    knn_patience: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0.")
        for name in self.SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")
        for name in self.COUNTS:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 0.")
        if self.warmup_epochs > self.num_train_epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, longer than the run of {self.num_train_epochs} epochs: lower it, in a recipe "
                '(.json) as {"arguments": {"warmup_epochs": …}}.'
            )

    @classmethod
    def method_fields(cls) -> tuple[str, ...]:
        """The arguments that change the numbers, for the record of a run."""
        own = (known.name for known in fields(cls) if known.name not in TrainingArguments.__dataclass_fields__)
        return ("learning_rate", "weight_decay", "max_grad_norm", *own)


@dataclass
class DINOTrainingArguments(PretrainingArguments):
    """Arguments of a `DINOTrainer`. The defaults are those of facebookresearch/dino, main_dino.py.

    `learning_rate` is for the whole batch; DINO states it for 256 images. `max_grad_norm` limits the gradient norm of each parameter
    separately. See `PretrainingArguments` for the others.

    num_prototypes: K, the number of outputs of the head.
    head_hidden_size, head_bottleneck_size: widths of the layers of the head.
    normalize_last_layer: keep the prototypes at length 1.
    teacher_momentum: first value of the momentum of the teacher's moving average, which ends at 1.
    warmup_teacher_temperature, teacher_temperature, warmup_teacher_temperature_epochs: the first and the last value of the teacher's
        temperature, and the epochs in between.
    student_temperature, center_momentum: see `DINOLoss`.
    freeze_last_layer_epochs: first epochs, in which the prototypes are not trained.
    collapse_tolerance, collapse_patience: the run stops when the entropy of the targets stays within this share of its limit for as many
        updates after the warm-up: log K (uniform targets), or 0 (the same target for all images); `collapse_patience=0` never stops it.
    """

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *PretrainingArguments.POSITIVE,
        *("num_prototypes", "warmup_teacher_temperature", "teacher_temperature", "student_temperature"),
    )
    SHARES: ClassVar[tuple[str, ...]] = (*PretrainingArguments.SHARES, "teacher_momentum", "center_momentum", "collapse_tolerance")
    COUNTS: ClassVar[tuple[str, ...]] = (*PretrainingArguments.COUNTS, "collapse_patience")

    # Options of main_dino.py; quotations from arXiv:2104.14294, section 3.2
    learning_rate: float = 0.0005  # --lr; "lr = 0.0005 * batchsize / 256"
    num_train_epochs: float = 100.0  # --epochs
    weight_decay: float = 0.04  # --weight_decay; "The weight decay also follows a cosine schedule from 0.04 to 0.4."
    max_grad_norm: float = 3.0  # --clip_grad; utils.py, clip_gradients, which clips each parameter separately
    dataloader_drop_last: bool = True  # train_dino: DataLoader(drop_last=True)

    num_prototypes: int = 65536  # --out_dim
    head_hidden_size: int = 2048  # vision_transformer.py, DINOHead: hidden_dim; "(MLP) with hidden dimension 2048", section 3.1
    head_bottleneck_size: int = 256  # vision_transformer.py, DINOHead: bottleneck_dim
    normalize_last_layer: bool = True  # --norm_last_layer
    drop_path_rate: float = 0.1  # --drop_path_rate
    teacher_momentum: float = 0.996  # --momentum_teacher; "a cosine schedule from 0.996 to 1 during training", section 3.1
    # Constant in the code's defaults; in the paper: "a linear warm-up […] from 0.04 to 0.07 during the first 30 epochs"
    warmup_teacher_temperature: float = 0.04  # --warmup_teacher_temp
    teacher_temperature: float = 0.04  # --teacher_temp
    warmup_teacher_temperature_epochs: int = 0  # --warmup_teacher_temp_epochs
    student_temperature: float = 0.1  # DINOLoss: student_temp; "The temperature [of the student] is set to 0.1"
    center_momentum: float = 0.9  # DINOLoss: center_momentum
    final_weight_decay: float = 0.4  # --weight_decay_end
    warmup_epochs: float = 10.0  # --warmup_epochs; "linearly ramped up during the first 10 epochs"
    min_learning_rate: float = 1e-6  # --min_lr
    freeze_last_layer_epochs: int = 1  # --freeze_last_layer
    # Chosen by us. The run of examples/digits, which ends well, comes as near as 3.7 % to log K after its warm-up
    collapse_tolerance: float = 0.01
    collapse_patience: int = 200


@dataclass
class DINOv2TrainingArguments(DINOTrainingArguments):
    """Arguments of a `DINOv2Trainer`. The defaults are those of facebookresearch/dinov2, configs/ssl_default_config.yaml.

    `learning_rate` is for the whole batch; DINOv2 states it for 1,024 images and scales it with the square root. `max_grad_norm` limits
    the gradient norm of backbone, head and patch head, each as a whole. The teacher's temperature grows from update to update.
    See `DINOTrainingArguments` for the others.

    dino_loss_weight, ibot_loss_weight, koleo_loss_weight: factors of the losses.
    gram_loss_weight: factor of the loss that anchors the similarities of patches to those of the initial backbone (DINOv3).
    centering: of the teacher's outputs: softmax (with a running center) or sinkhorn_knopp.
    separate_head: whether patches have a head of their own, with `num_prototypes` outputs.
    mask_probability: share of the global crops that are masked.
    min_mask_ratio, max_mask_ratio: bounds of the share of patches that are masked in these.
    layer_decay: factor of the learning rate from one block to the block before it.
    patch_embedding_lr_factor: factor of the learning rate of the patch projection.
    high_resolution_epochs: last epochs, in which the crops are larger.
    high_resolution_scale: by how much. Sides are rounded to a multiple of the patch.
    """

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *DINOTrainingArguments.POSITIVE,
        *("layer_decay", "max_mask_ratio", "high_resolution_scale"),
    )
    SHARES: ClassVar[tuple[str, ...]] = (*DINOTrainingArguments.SHARES, "mask_probability", "min_mask_ratio", "max_mask_ratio")

    # Fields of ssl_default_config.yaml
    learning_rate: float = 0.004  # optim.base_lr: "learning rate for a batch size of 1024"
    drop_path_rate: float = 0.3  # student.drop_path_rate
    normalize_last_layer: bool = False  # layers/dino_head.py: weight_g is trained
    teacher_momentum: float = 0.992  # teacher.momentum_teacher
    teacher_temperature: float = 0.07  # teacher.teacher_temp
    warmup_teacher_temperature_epochs: int = 30  # teacher.warmup_teacher_temp_epochs

    dino_loss_weight: float = 1.0  # dino.loss_weight
    ibot_loss_weight: float = 1.0  # ibot.loss_weight
    koleo_loss_weight: float = 0.1  # dino.koleo_loss_weight
    gram_loss_weight: float = 0.0
    centering: str = "softmax"  # train.centering: "centering"
    separate_head: bool = False  # ibot.separate_head
    mask_probability: float = 0.5  # ibot.mask_sample_probability
    min_mask_ratio: float = 0.1  # ibot.mask_ratio_min_max
    max_mask_ratio: float = 0.5
    layer_decay: float = 0.9  # optim.layerwise_decay
    patch_embedding_lr_factor: float = 0.2  # optim.patch_embed_lr_mult
    # arXiv:2304.07193, section 4: "we increase the resolution of images to 518 x 518 during a short period at the end of pretraining"
    high_resolution_epochs: int = 0
    high_resolution_scale: float = 518 / 224

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centering not in CENTERINGS:
            raise ValueError(f"centering is {self.centering!r}; expected {' or '.join(CENTERINGS)}.")
        if not self.min_mask_ratio <= self.max_mask_ratio:
            raise ValueError(f"min_mask_ratio {self.min_mask_ratio} is above max_mask_ratio {self.max_mask_ratio}.")
        if not 0 <= self.high_resolution_epochs <= self.num_train_epochs:
            raise ValueError(f"high_resolution_epochs is {self.high_resolution_epochs} of {self.num_train_epochs:g} epochs.")
        for name in ("dino_loss_weight", "ibot_loss_weight", "koleo_loss_weight", "gram_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number of at least 0.")


@dataclass
class DistillationTrainingArguments(PretrainingArguments):
    """Arguments of a `DistillationTrainer`. The defaults are those of BeSpontaneous/Proteus-pytorch, pretrain/main.py.

    `learning_rate` is for the whole batch; Proteus states it for 512 images. See `PretrainingArguments` for the others.

    distance: between the student's projected features and the teacher's: mse or cosine.
    num_layers: pairs of blocks at the same share of the depth, whose features are compared. 1 compares the last blocks.
    image_loss_weight, patch_loss_weight: factors of the losses of the image features and the patch features.
    """

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *PretrainingArguments.POSITIVE,
        *("num_layers", "image_loss_weight", "patch_loss_weight"),
    )
    COUNTS: ClassVar[tuple[str, ...]] = (*PretrainingArguments.COUNTS, "num_layers")

    # Options of pretrain/main.py
    learning_rate: float = 0.0005  # --lr
    num_train_epochs: float = 300.0  # --epochs
    weight_decay: float = 0.05  # --weight-decay, constant
    final_weight_decay: float = 0.05
    max_grad_norm: float = 0.0  # --clip-grad: "no clipping"
    warmup_epochs: float = 5.0  # --warmup-epochs
    min_learning_rate: float = 1e-5  # --min-lr

    distance: str = "mse"  # models_proteus_dinov2.py: MSELoss
    num_layers: int = 1  # x_norm_clstoken and x_norm_patchtokens: the last block
    image_loss_weight: float = 1.0  # --lambda_token
    patch_loss_weight: float = 1.0  # --lambda_fea

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise ValueError(f"distance is {self.distance!r}; expected {' or '.join(DISTANCES)}.")
