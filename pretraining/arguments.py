"""The settings of a DINO run: `transformers.TrainingArguments`, and what DINO adds."""

from dataclasses import dataclass, fields

from transformers import TrainingArguments


@dataclass
class DINOTrainingArguments(TrainingArguments):
    """Arguments of a `DINOTrainer`; the defaults are those of facebookresearch/dino, main_dino.py.

    Of `TrainingArguments`, some mean more here: `learning_rate` is the largest one, after the warm-up, and of the whole batch as it is
    (DINO gives it for 256 images); `weight_decay` is where the weight decay begins; `max_grad_norm` is the largest norm of the gradient
    of each parameter, not of all together; `lr_scheduler_type` and `warmup_steps` are not read. Where `max_steps` says how long the run
    is, an epoch of these settings is the `num_train_epochs`-th part of it.

    num_prototypes: K, outputs of the head. head_hidden_size, head_bottleneck_size: of its layers.
    normalize_last_layer: keep the prototypes at length 1.
    drop_path_rate: stochastic depth of the student.
    teacher_momentum: of the teacher's moving average, at the beginning; in the end it is 1.
    warmup_teacher_temperature, teacher_temperature, warmup_teacher_temperature_epochs: from, to, over how many epochs.
    student_temperature, center_momentum: see `DINOLoss`.
    final_weight_decay: a half cosine leads to it.
    warmup_epochs: of the learning rate. min_learning_rate: in the end.
    freeze_last_layer_epochs: at the beginning, in which the prototypes do not learn.
    """

    learning_rate: float = 0.0005
    num_train_epochs: float = 100.0
    weight_decay: float = 0.04
    max_grad_norm: float = 3.0
    dataloader_drop_last: bool = True
    ddp_find_unused_parameters: bool | None = False
    ddp_broadcast_buffers: bool | None = False  # the centre is the same everywhere
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False  # a loss that is no number ends the run

    num_prototypes: int = 65536
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256
    normalize_last_layer: bool = True
    drop_path_rate: float = 0.1
    teacher_momentum: float = 0.996
    warmup_teacher_temperature: float = 0.04
    teacher_temperature: float = 0.04
    warmup_teacher_temperature_epochs: int = 0
    student_temperature: float = 0.1
    center_momentum: float = 0.9
    final_weight_decay: float = 0.4
    warmup_epochs: float = 10.0
    min_learning_rate: float = 1e-6
    freeze_last_layer_epochs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        temperatures = ("warmup_teacher_temperature", "teacher_temperature", "student_temperature")
        for name in ("learning_rate", "num_train_epochs", "num_prototypes", *temperatures):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; write a number above 0.")
        for name in ("teacher_momentum", "center_momentum", "drop_path_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; write a number from 0 to 1.")
        if self.warmup_epochs > self.num_train_epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, longer than the run of {self.num_train_epochs} epochs; write at most "
                'that, in a recipe (.json) as {"arguments": {"warmup_epochs": …}}.'
            )


# What a run was made with, as far as it changes the numbers and no recipe says otherwise
DINO_ARGUMENTS = (
    *("learning_rate", "weight_decay", "max_grad_norm"),
    *(known.name for known in fields(DINOTrainingArguments) if known.name not in TrainingArguments.__dataclass_fields__),
)
