"""The model that a student learns from, and what a run checks and records of it."""

from typing import Any, NamedTuple

from ..convert.report import ConversionReport
from ..errors import VitrailError
from ..modeling.fingerprint import config_fields, weights_digest
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.multi_crop import MultiCropAugmentation
from .crops import normalization


class FrozenTeacher(NamedTuple):
    """A model, its image processor and its report, as `vitrail.load` returns them."""

    model: ViTPreTrainedModel
    image_processor: VitrailImageProcessor
    report: ConversionReport | None = None

    @property
    def vit(self) -> ViTModel:
        """The encoder, which this converts to float32: a published file may hold float16."""
        vit: ViTModel = self.model.base_model.float()
        return vit

    def settings(self) -> dict[str, Any]:
        """Return what identifies the teacher: a run that resumes needs the same one."""
        return {
            "weights": weights_digest(self.vit),
            "config": config_fields(self.vit),
            "normalization": normalization(self.image_processor),
        }

    def check(self, augmentation: MultiCropAugmentation, image_processor: VitrailImageProcessor) -> None:
        """Raise VitrailError if the teacher does not take the crops of an augmentation, normalized by an image processor."""
        self.renormalization(image_processor)
        for crop in augmentation.crops:
            if any(crop.size % patch for patch in self.vit.config.patch_shape):
                height, width = self.vit.config.patch_shape
                raise VitrailError(
                    f"The crops have {crop.size}x{crop.size} pixels, which the {height}x{width} patches of the teacher do not divide: "
                    'write another "size" into "augmentation" of the recipe.'
                )

    def renormalization(self, image_processor: VitrailImageProcessor) -> tuple[list[float], list[float]]:
        """Return factor and summand of each channel, which turn pixel values of another image processor into the teacher's.

        Raises:
            VitrailError: the numbers of channels differ.
        """
        channels, theirs = image_processor.num_channels, self.image_processor.num_channels
        if channels != theirs:
            raise VitrailError(
                f"The student's images have {channels} channels and the teacher's {theirs}: convert one of the two with num_channels=."
            )
        (means, stds), (teacher_means, teacher_stds) = (normalization(one) for one in (image_processor, self.image_processor))
        scale = [std / teacher_std for std, teacher_std in zip(stds, teacher_stds, strict=True)]
        shift = [
            (mean - teacher_mean) / teacher_std
            for mean, teacher_mean, teacher_std in zip(means, teacher_means, teacher_stds, strict=True)
        ]
        return scale, shift
