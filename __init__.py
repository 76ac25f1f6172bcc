"""Vitrail: one model for every published Vision Transformer of the DINO, DINOv2, Google and timm families.

Importing the package registers its classes with transformers' Auto classes: a folder that `vitrail convert` wrote then loads with
`AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained`. Every public name is listed here and imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .auto import register
from .version import __version__

if TYPE_CHECKING:  # for type checkers and editors; PUBLIC_NAMES is what runs, and a test compares the two
    from .configuration.configuration_vit import ViTConfig as ViTConfig
    from .configuration.sizes import SIZES as SIZES
    from .convert.export import export_model as export_model
    from .convert.loading import load as load
    from .convert.report import ConversionReport as ConversionReport
    from .convert.sources.catalog import list_checkpoints as list_checkpoints
    from .convert.verification import verify as verify
    from .data.dense import load_dense_images as load_dense_images
    from .data.image_sources import read_images as read_images
    from .data.labeled import load_labeled_images as load_labeled_images
    from .data.labeled import load_training_images as load_training_images
    from .errors import VitrailError as VitrailError
    from .evaluation.dense_metrics import DepthErrors as DepthErrors
    from .evaluation.dense_metrics import MeanIoU as MeanIoU
    from .evaluation.dense_probing import probe_dense as probe_dense
    from .evaluation.metrics import MeanPerClassAccuracy as MeanPerClassAccuracy
    from .evaluation.metrics import TopKAccuracy as TopKAccuracy
    from .evaluation.metrics import compute_metrics as compute_metrics
    from .evaluation.metrics import make_compute_metrics as make_compute_metrics
    from .evaluation.pooled_evaluation import evaluate_knn as evaluate_knn
    from .evaluation.pooled_evaluation import evaluate_logistic as evaluate_logistic
    from .evaluation.probing import probe as probe
    from .features.cache import FeatureCache as FeatureCache
    from .features.embedding import ImageEmbedder as ImageEmbedder
    from .features.extraction import extract as extract
    from .features.store import StoredFeatures as StoredFeatures
    from .hub.saving import convert_checkpoint as convert_checkpoint
    from .hub.saving import save as save
    from .hub.upload import push as push
    from .model_cards.readme import model_card as model_card
    from .modeling.modeling_vit import ViTBackbone as ViTBackbone
    from .modeling.modeling_vit import ViTForImageClassification as ViTForImageClassification
    from .modeling.modeling_vit import ViTForMaskedImageModeling as ViTForMaskedImageModeling
    from .modeling.modeling_vit import ViTModel as ViTModel
    from .modeling.modeling_vit import ViTPreTrainedModel as ViTPreTrainedModel
    from .modeling.modeling_vit_dense import ViTForDepthEstimation as ViTForDepthEstimation
    from .modeling.modeling_vit_dense import ViTForSemanticSegmentation as ViTForSemanticSegmentation
    from .modeling.operation_counts import complexity as complexity
    from .pretraining.arguments import DINOTrainingArguments as DINOTrainingArguments
    from .pretraining.arguments import DINOv2TrainingArguments as DINOv2TrainingArguments
    from .pretraining.arguments import DistillationTrainingArguments as DistillationTrainingArguments
    from .pretraining.crops import MultiCropImages as MultiCropImages
    from .pretraining.dino_trainer import DINOTrainer as DINOTrainer
    from .pretraining.dinov2_trainer import DINOv2Trainer as DINOv2Trainer
    from .pretraining.distillation_trainer import DistillationTrainer as DistillationTrainer
    from .pretraining.job import pretrain as pretrain
    from .pretraining.masks import BlockMasking as BlockMasking
    from .processing.image_processing_vit import VitrailImageProcessor as VitrailImageProcessor
    from .processing.multi_crop import DINO_AUGMENTATION as DINO_AUGMENTATION
    from .processing.multi_crop import DINOV2_AUGMENTATION as DINOV2_AUGMENTATION
    from .processing.presets import make_image_processor as make_image_processor
    from .runtime.compiled import Runtime as Runtime
    from .runtime.optimization import OptimizationReport as OptimizationReport
    from .runtime.optimization import OptimizedModel as OptimizedModel
    from .runtime.optimization import optimize as optimize
    from .visualization.attention import plot_attention as plot_attention
    from .visualization.depth import plot_depth as plot_depth
    from .visualization.patch_similarity import plot_patch_similarity as plot_patch_similarity
    from .visualization.pca import plot_pca as plot_pca
    from .visualization.report.page import make_report as make_report
    from .visualization.segmentation import plot_segmentation as plot_segmentation
    from .visualization.similar import find_similar as find_similar

# By group, the module that defines each public name
PUBLIC_NAMES = {
    # the model
    "ViTConfig": "configuration.configuration_vit",
    "SIZES": "configuration.sizes",
    "ViTPreTrainedModel": "modeling.modeling_vit",
    "ViTModel": "modeling.modeling_vit",
    "ViTForImageClassification": "modeling.modeling_vit",
    "ViTForSemanticSegmentation": "modeling.modeling_vit_dense",
    "ViTForDepthEstimation": "modeling.modeling_vit_dense",
    "ViTForMaskedImageModeling": "modeling.modeling_vit",
    "ViTBackbone": "modeling.modeling_vit",
    "complexity": "modeling.operation_counts",
    # images
    "VitrailImageProcessor": "processing.image_processing_vit",
    "make_image_processor": "processing.presets",
    # checkpoints
    "load": "convert.loading",
    "save": "hub.saving",
    "convert_checkpoint": "hub.saving",
    "export_model": "convert.export",
    "verify": "convert.verification",
    "list_checkpoints": "convert.sources.catalog",
    "ConversionReport": "convert.report",
    # the Hub
    "push": "hub.upload",
    "model_card": "model_cards.readme",
    # performance
    "optimize": "runtime.optimization",
    "OptimizedModel": "runtime.optimization",
    "OptimizationReport": "runtime.optimization",
    "Runtime": "runtime.compiled",
    # features
    "read_images": "data.image_sources",
    "extract": "features.extraction",
    "StoredFeatures": "features.store",
    "FeatureCache": "features.cache",
    "ImageEmbedder": "features.embedding",
    "find_similar": "visualization.similar",
    # pictures
    "plot_attention": "visualization.attention",
    "plot_pca": "visualization.pca",
    "plot_patch_similarity": "visualization.patch_similarity",
    "plot_segmentation": "visualization.segmentation",
    "plot_depth": "visualization.depth",
    "make_report": "visualization.report.page",
    # evaluation
    "load_labeled_images": "data.labeled",
    "probe": "evaluation.probing",
    "evaluate_knn": "evaluation.pooled_evaluation",
    "evaluate_logistic": "evaluation.pooled_evaluation",
    "TopKAccuracy": "evaluation.metrics",
    "MeanPerClassAccuracy": "evaluation.metrics",
    "load_dense_images": "data.dense",
    "probe_dense": "evaluation.dense_probing",
    "MeanIoU": "evaluation.dense_metrics",
    "DepthErrors": "evaluation.dense_metrics",
    "compute_metrics": "evaluation.metrics",
    "make_compute_metrics": "evaluation.metrics",
    # pretraining
    "pretrain": "pretraining.job",
    "DINOTrainer": "pretraining.dino_trainer",
    "DINOTrainingArguments": "pretraining.arguments",
    "DINOv2Trainer": "pretraining.dinov2_trainer",
    "DINOv2TrainingArguments": "pretraining.arguments",
    "DistillationTrainer": "pretraining.distillation_trainer",
    "DistillationTrainingArguments": "pretraining.arguments",
    "load_training_images": "data.labeled",
    "MultiCropImages": "pretraining.crops",
    "BlockMasking": "pretraining.masks",
    "DINO_AUGMENTATION": "processing.multi_crop",
    "DINOV2_AUGMENTATION": "processing.multi_crop",
    # errors
    "VitrailError": "errors",
}

__all__ = ["__version__", *PUBLIC_NAMES]

register()


def __getattr__(name: str) -> Any:
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{PUBLIC_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
