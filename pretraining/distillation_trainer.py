"""Distillation in transformers' Trainer."""

from typing import Any

from transformers import set_seed

from ..convert.report import ConversionReport
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .arguments import DistillationTrainingArguments
from .frozen_teacher import FrozenTeacher
from .methods.distillation import DistillationModel
from .trained_parameters import merge_adapters
from .trainer import PretrainingTrainer

Teacher = (
    tuple[ViTPreTrainedModel, VitrailImageProcessor] | tuple[ViTPreTrainedModel, VitrailImageProcessor, ConversionReport | None]
)


class DistillationTrainer(PretrainingTrainer):
    """Trains a student to compute the features of a frozen teacher.

    Logs, checkpoints, resuming, mixed precision, gradient accumulation and several processes work as in any Trainer. Checkpoints do not
    hold the teacher. `trainer.backbone` is the result.

    Args:
        model: the initial backbone of the student, which stays unchanged; or a DistillationModel.
        args: how to train.
        teacher: the teacher with its image processor, as `vitrail.load` returns them. The model itself is used: in float32,
            frozen, and on the device of the run.
        image_processor: by which the crops are normalized; they are normalized again for the teacher.
        train_dataset: of {"pixel_values": (2, C, S, S), "local_pixel_values": (n, C, s, s)}, the crops of an image, as
            `vitrail.MultiCropImages` makes them.
    """

    args: DistillationTrainingArguments
    model: DistillationModel

    def __init__(
        self,
        model: ViTPreTrainedModel | DistillationModel,
        args: DistillationTrainingArguments,
        *,
        teacher: Teacher | None = None,
        image_processor: VitrailImageProcessor | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, DistillationModel):
            if teacher is None or image_processor is None:
                raise ValueError(
                    "A DistillationTrainer needs teacher=, as vitrail.load returns it, and image_processor=, by which the crops are "
                    "normalized."
                )
            set_seed(args.seed)  # the Trainer sets it too late for new projections
            model = make_distillation_model(model, FrozenTeacher(*teacher), image_processor, args)
        super().__init__(model=model, args=args, **kwargs)

    @property
    def backbone(self) -> ViTModel:
        """The student's backbone; if the run trains adapters, a copy that they are merged into."""
        return merge_adapters(self.model.student.backbone)


def make_distillation_model(
    model: ViTPreTrainedModel,
    teacher: FrozenTeacher,
    image_processor: VitrailImageProcessor,
    args: DistillationTrainingArguments,
) -> DistillationModel:
    """Return student and teacher of a run that starts from a model's encoder and new projections."""
    return DistillationModel(
        model.base_model,
        teacher.vit,
        distance=args.distance,
        num_layers=args.num_layers,
        image_loss_weight=args.image_loss_weight,
        patch_loss_weight=args.patch_loss_weight,
        renormalization=teacher.renormalization(image_processor),
        drop_path_rate=args.drop_path_rate,
    )
