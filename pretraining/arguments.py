"""The settings of a DINO run: `transformers.TrainingArguments` with the settings that DINO adds."""

from dataclasses import dataclass, fields

from transformers import TrainingArguments


@dataclass
class DINOTrainingArguments(TrainingArguments):
    """Arguments of a `DINOTrainer`. The defaults are those of facebookresearch/dino, main_dino.py.

    Some fields of `TrainingArguments` have another meaning here. `learning_rate` is the largest one, after the warm-up, for the whole
    batch (DINO states it for 256 images). `weight_decay` is the first value of its schedule. `max_grad_norm` limits the gradient norm of
    each parameter separately. `lr_scheduler_type` and `warmup_steps` are ignored. With `max_steps`, an epoch of these settings is the
    `num_train_epochs`-th part of the run.

    num_prototypes: K, the number of outputs of the head.
    head_hidden_size, head_bottleneck_size: widths of the layers of the head.
    normalize_last_layer: keep the prototypes at length 1.
    drop_path_rate: stochastic depth of the student.
    teacher_momentum: first value of the momentum of the teacher's moving average, which ends at 1.
    warmup_teacher_temperature, teacher_temperature, warmup_teacher_temperature_epochs: the first and the last value of the teacher's
        temperature, and the epochs in between.
    student_temperature, center_momentum: see `DINOLoss`.
    final_weight_decay: last value of the weight decay, which follows a half cosine.
    warmup_epochs: epochs in which the learning rate grows from 0.
    min_learning_rate: last value of the learning rate.
    freeze_last_layer_epochs: first epochs, in which the prototypes are not trained.
    """

    # Options of main_dino.py; quotations from arXiv:2104.14294, section 3.2
    learning_rate: float = 0.0005  # --lr; "lr = 0.0005 * batchsize / 256"
    num_train_epochs: float = 100.0  # --epochs
    weight_decay: float = 0.04  # --weight_decay; "The weight decay also follows a cosine schedule from 0.04 to 0.4."
    max_grad_norm: float = 3.0  # --clip_grad; utils.py, clip_gradients, which clips each parameter separately
    dataloader_drop_last: bool = True  # train_dino: DataLoader(drop_last=True)
    ddp_find_unused_parameters: bool | None = False
    ddp_broadcast_buffers: bool | None = False  # the center is the same in all processes
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False  # a loss that is not finite ends the run

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

    def __post_init__(self) -> None:
        super().__post_init__()
        temperatures = ("warmup_teacher_temperature", "teacher_temperature", "student_temperature")
        for name in ("learning_rate", "num_train_epochs", "num_prototypes", *temperatures):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0.")
        for name in ("teacher_momentum", "center_momentum", "drop_path_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")
        if self.warmup_epochs > self.num_train_epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, longer than the run of {self.num_train_epochs} epochs: lower it, in a recipe "
                '(.json) as {"arguments": {"warmup_epochs": …}}.'
            )


# The arguments that change the numbers, for the record of a run
DINO_ARGUMENTS = (
    *("learning_rate", "weight_decay", "max_grad_norm"),
    *(known.name for known in fields(DINOTrainingArguments) if known.name not in TrainingArguments.__dataclass_fields__),
)
