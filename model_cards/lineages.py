"""What the official checkpoints are, in words: how their weights came to be, and what the tests of this package compare them with."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..convert.sources.catalog import Checkpoint


@dataclass(frozen=True)
class Lineage:
    """Weights that came to be in one way, in whatever format they are published.

    paper: the arXiv number by which its checkpoints are told.
    name: what it is called; `tags`: on the Hub.
    labels: whether it was pre-trained with labels.
    about: what it is, for someone who has never heard of it; uses, limits: what its features are good for, and where to take care.
    """

    paper: str
    name: str
    tags: tuple[str, ...]
    labels: bool
    about: str
    uses: str
    limits: tuple[str, ...] = ()


MODEL_CARD_OF_DINOV2 = "[model card](https://github.com/facebookresearch/dinov2/blob/main/MODEL_CARD.md)"
ABOUT_DINOV2 = (
    "DINOv2 ([Oquab et al. 2023](https://arxiv.org/abs/2304.07193)) trains general-purpose features without labels, on 142 million images. "
    "It joins DINO's self-distillation, in which a student network predicts what a slowly moving teacher says of other crops of the same "
    "image, with the prediction of patches that are masked (iBOT). ViT-g was trained from scratch; ViT-S, B and L were distilled from it "
    f"({MODEL_CARD_OF_DINOV2})."
)
ABOUT_REGISTERS = (
    " This model also has four registers ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)): tokens that hold what large ViTs "
    "otherwise store in a few patches of the background, so that feature maps and attention maps are smoother."
)
USES_DINOV2 = (
    "Use its features as they are: for classification by nearest neighbours or a linear layer, for retrieval, and, from the patch tokens, "
    "for segmentation and depth with a linear layer. Its authors advise to fine-tune it only as a last step."
)
LIMITS_DINOV2 = (
    f"Its authors still observe significant biases toward rich households from Western countries ({MODEL_CARD_OF_DINOV2}).",
)
USES_SUPERVISED = "Use its features for retrieval or for a small classifier of your own, or fine-tune it on your images."

# The first whose paper a checkpoint names is its lineage
LINEAGES = (
    Lineage(
        paper="2309.16588",
        name="DINOv2 with registers",
        tags=("dinov2", "registers"),
        labels=False,
        about=ABOUT_DINOV2 + ABOUT_REGISTERS,
        uses=USES_DINOV2,
        limits=LIMITS_DINOV2,
    ),
    Lineage(
        paper="2304.07193",
        name="DINOv2",
        tags=("dinov2",),
        labels=False,
        about=ABOUT_DINOV2,
        uses=USES_DINOV2,
        limits=LIMITS_DINOV2,
    ),
    Lineage(
        paper="2104.14294",
        name="DINO",
        tags=("dino",),
        labels=False,
        about="DINO ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)) trains a Vision Transformer without labels, by "
        "self-distillation: a student network sees crops of an image and learns to predict what a teacher network, the moving average of "
        "the student, says of other crops of it. Images of the same kind come to have similar features, and what [CLS], the token that "
        "stands for the whole image, attends to in the last block follows the outlines of objects, though no outline was ever shown to it.",
        uses="Use it for features of whole images (nearest neighbours, retrieval, copy detection, a linear classifier), and for attention "
        "maps and patch features that set objects apart without labels.",
    ),
    Lineage(
        paper="2111.09883",
        name="timm's ViT with relative positions",
        tags=("relpos",),
        labels=True,
        about="A Vision Transformer of [timm](https://github.com/huggingface/pytorch-image-models) that adds no position embeddings to its "
        "tokens. Instead a small MLP turns the offset between two patches, on a logarithmic scale, into a bias of their attention: an idea "
        "of Swin Transformer V2 ([Liu et al. 2021](https://arxiv.org/abs/2111.09883)). It was trained in timm by a recipe close to Swin's "
        "(`sw` in its name).",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2106.10270",
        name="AugReg ViT",
        tags=("augreg",),
        labels=True,
        about="A Vision Transformer from the study *How to train your ViT?* "
        "([Steiner et al. 2021](https://arxiv.org/abs/2106.10270)), which measured how far data augmentation and regularisation (together "
        "*augreg*) make up for more images. The architecture is that of the first Vision Transformer "
        "([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)); what differs is how it was trained.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2010.11929",
        name="ViT",
        tags=(),
        labels=True,
        about="The first Vision Transformer ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)). It cuts an image into patches, "
        "makes each one a token, puts before them a [CLS] token, which comes to stand for the whole image, and sends the sequence through "
        "a standard Transformer encoder; a classifier reads [CLS]. Google trained it with labels.",
        uses=USES_SUPERVISED,
    ),
)


def lineage_of(checkpoint: Checkpoint) -> Lineage:
    """The lineage of an official checkpoint, by the papers that its row names."""
    return next(lineage for lineage in LINEAGES if lineage.paper in checkpoint.paper)


@dataclass(frozen=True)
class Dataset:
    """A data set: what it holds, and its id on the Hub where it has one."""

    about: str
    hub_id: str | None


DATASETS: Mapping[str, Dataset] = {
    "ImageNet-1k": Dataset("1.28 million images of 1,000 classes", "imagenet-1k"),
    "ImageNet-21k": Dataset("14 million images of 21,843 classes", "imagenet-21k"),
    "LVD-142M": Dataset(
        "142 million images, chosen from the web for their likeness to curated data sets; it was not published", None
    ),
}


def training(checkpoint: Checkpoint) -> str:
    """How the weights were trained, on which data."""
    lineage = lineage_of(checkpoint)
    first, *rest = (f"{name} ({DATASETS[name].about})" for name in checkpoint.training_data)
    how = "with labels" if lineage.labels else "without labels"
    if not rest:
        return f"{'Trained' if lineage.labels else 'Pre-trained'} {how} on {first}."
    size = checkpoint.architecture["image_size"]
    then = (
        f"fine-tuned with labels on {rest[0]}, at {size} x {size} pixels"
        if lineage.labels
        else f"a linear classifier was trained with labels on {rest[0]}, on features that stayed as they were"
    )
    return f"Pre-trained {how} on {first}. Then {then}."


def trained_on(checkpoint: Checkpoint) -> str:
    """The same in a clause, for a summary."""
    lineage, (first, *rest) = lineage_of(checkpoint), checkpoint.training_data
    if lineage.labels:
        return f", trained with labels on {' and then on '.join((first, *rest))}"
    classifier = f", with a linear classifier for {rest[0]}" if rest else ""
    return f", trained by {lineage.name} on {first}, without labels{classifier}"


@dataclass(frozen=True)
class Comparison:
    """What the tests of this package compare a format with: `names` are where names and shapes come from."""

    original: str
    cases: str
    names: str


COMPARISONS: Mapping[str, Comparison] = {
    "dino-pth": Comparison(
        "DINO's own `vision_transformer.py`", "ViT-S/8 and ViT-B/16, with their linear classifiers", "DINO's own code"
    ),
    "dinov2-pth": Comparison(
        "DINOv2's own code",
        "ViT-S/14 with and without registers, with their linear classifiers, and a small model with the SwiGLU of ViT-g",
        "DINOv2's own code",
    ),
    "google-npz": Comparison(
        "Google's `vit_jax`", "ViT-S/16, and ViT-B/32 with the layer before the classifier (pre_logits)", "Google's own code"
    ),
    "timm-hub": Comparison(
        "timm 1.0.31", "ViT-B/8, four models with relative positions, and small models of every kind that timm makes", "timm 1.0.31"
    ),
    "transformers-hub": Comparison(
        "transformers' own classes",
        "small models of the same types (ViT, DINOv2, DINOv2 with registers)",
        "transformers' own classes",
    ),
}
