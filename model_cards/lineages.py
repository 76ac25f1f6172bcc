"""Official checkpoints in words: how their weights were trained, and what the cards state about each family."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..convert.sources.catalog import Checkpoint


@dataclass(frozen=True)
class Lineage:
    """Checkpoints that were trained in one way, in any format.

    paper: the arXiv number that identifies its checkpoints.
    tags: its tags on the Hub.
    labels: whether it was pretrained with labels.
    about: what it is, for newcomers; uses, limits: what its features are good for, and their limitations.
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
    "It combines DINO's self-distillation, in which a student network predicts the outputs of a slowly moving teacher for other crops of "
    "the same image, with the prediction of masked patches (iBOT). ViT-g was trained from scratch; ViT-S, B and L were distilled from it "
    f"({MODEL_CARD_OF_DINOV2})."
)
ABOUT_REGISTERS = (
    " This model also has four registers ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)): tokens for information that large ViTs "
    "otherwise store in a few background patches. They make feature maps and attention maps smoother."
)
USES_DINOV2 = (
    "Use its frozen features: for classification by nearest neighbors or a linear layer, for retrieval, and, from the patch tokens, for "
    "segmentation and depth with a linear layer. Its authors advise fine-tuning only as a last step."
)
LIMITS_DINOV2 = (f"Its authors observe significant biases toward rich households from Western countries ({MODEL_CARD_OF_DINOV2}).",)
USES_SUPERVISED = "Use its features for retrieval or a small classifier, or fine-tune it on your images."

ABOUT_DINOV3 = (
    "DINOv3 ([Siméoni et al. 2025](https://arxiv.org/abs/2508.10104)) scales DINOv2's training without labels to 1.7 billion images and "
    "7 billion parameters. Its Gram anchoring keeps the patch features sharp during the long training. ViT-7B was trained from "
    "scratch; the smaller models were distilled from it. Rotary positions take the place of learned ones, so that images of any size run, "
    "and four registers ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)) hold information about the whole image."
)
USES_DINOV3 = (
    "Use its frozen features: the patch tokens for segmentation, depth, matching and tracking, [CLS] for classification by nearest "
    "neighbors or a linear layer, and for retrieval."
)

# The lineage of a checkpoint is the first whose paper it names
LINEAGES = (
    Lineage(
        paper="2508.10104",
        name="DINOv3",
        tags=("dinov3", "registers"),
        labels=False,
        about=ABOUT_DINOV3,
        uses=USES_DINOV3,
    ),
    Lineage(
        paper="2603.22387",
        name="EUPE",
        tags=("eupe", "registers"),
        labels=False,
        about="EUPE, the Efficient Universal Perception Encoder ([Zhu et al. 2026](https://arxiv.org/abs/2603.22387)), trains small "
        "encoders by distillation, so that one model serves the understanding of images, dense prediction and vision-language models. "
        "The architecture is that of DINOv3.",
        uses="Use its frozen features: for classification and retrieval, for segmentation and depth, and as input of a language model.",
    ),
    Lineage(
        paper="2607.05247",
        name="LingBot-Vision",
        tags=("lingbot-vision", "registers"),
        labels=False,
        about="LingBot-Vision ([Fu et al. 2026](https://arxiv.org/abs/2607.05247)) trains without labels for dense, spatial tasks: the "
        "patches that are masked, and must be predicted, are those at boundaries, which a teacher network finds. ViT-S, B and L were "
        "distilled from ViT-g. The architecture is that of DINOv3.",
        uses="Use its frozen patch features: for segmentation, depth, and matching between images and in videos.",
    ),
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
        "self-distillation: a student network sees crops of an image and learns to predict the outputs of a teacher network, the moving "
        "average of the student, for other crops of the image. Similar images get similar features, and the attention of [CLS], the token "
        "for the whole image, in the last block follows the outlines of objects, although no outlines were used for training.",
        uses="Use it for features of whole images (nearest neighbors, retrieval, copy detection, a linear classifier), and for attention "
        "maps and patch features that separate objects without labels.",
    ),
    Lineage(
        paper="2111.09883",
        name="timm's ViT with relative positions",
        tags=("relpos",),
        labels=True,
        about="A Vision Transformer of [timm](https://github.com/huggingface/pytorch-image-models) without position "
        "embeddings. Instead, a small MLP maps the offset between two patches, on a logarithmic scale, to a bias of their attention, as in "
        "Swin Transformer V2 ([Liu et al. 2021](https://arxiv.org/abs/2111.09883)). It was trained in timm with a recipe close to Swin's "
        "(`sw` in its name).",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2106.10270",
        name="AugReg ViT",
        tags=("augreg",),
        labels=True,
        about="A Vision Transformer from the study *How to train your ViT?* "
        "([Steiner et al. 2021](https://arxiv.org/abs/2106.10270)), which measured how far data augmentation and regularization (together "
        "*augreg*) replace more images. The architecture is that of the first Vision Transformer "
        "([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)); the training differs.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2010.11929",
        name="ViT",
        tags=(),
        labels=True,
        about="The first Vision Transformer ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)). It splits an image "
        "into patches, makes each patch a token, prepends a [CLS] token for the whole image, and applies a standard Transformer encoder; a "
        "classifier reads [CLS]. Google trained it with labels.",
        uses=USES_SUPERVISED,
    ),
)


def lineage_of(checkpoint: Checkpoint) -> Lineage:
    """Return the lineage of an official checkpoint, from the papers in its row."""
    return next(lineage for lineage in LINEAGES if lineage.paper in checkpoint.paper)


@dataclass(frozen=True)
class Dataset:
    """A dataset in words, and its id on the Hub where it has one; `images`: the kind of its images."""

    about: str
    hub_id: str | None
    images: str = "photographs, most of them from the web"


DATASETS: Mapping[str, Dataset] = {
    "ImageNet-1k": Dataset("1.28 million images of 1,000 classes", "imagenet-1k"),
    "ImageNet-21k": Dataset("14 million images of 21,843 classes", "imagenet-21k"),
    "LVD-142M": Dataset("142 million images from the web, selected for their similarity to curated datasets; not published", None),
    "LVD-1689M": Dataset("1,689 million images, selected from public posts on Instagram and curated datasets; not published", None),
    "SAT-493M": Dataset(
        "493 million satellite images of 512 x 512 pixels, at 0.6 m per pixel; not published", None, "satellite images"
    ),
    "LingBot-Vision's images": Dataset(
        "a collection that its README neither names nor links", None, "images that are not described"
    ),
}


def training(checkpoint: Checkpoint) -> str:
    """Return sentences about the training and its data."""
    lineage = lineage_of(checkpoint)
    first, *rest = (f"{name} ({DATASETS[name].about})" for name in checkpoint.training_data)
    how = "with labels" if lineage.labels else "without labels"
    if not rest:
        return f"{'Trained' if lineage.labels else 'Pretrained'} {how} on {first}."
    size = checkpoint.architecture["image_size"]
    then = (
        f"fine-tuned with labels on {rest[0]}, at {size} x {size} pixels"
        if lineage.labels
        else f"a linear classifier was trained with labels on {rest[0]}, on frozen features"
    )
    return f"Pretrained {how} on {first}. Then {then}."


def trained_on(checkpoint: Checkpoint) -> str:
    """Return a clause about the training, for a summary."""
    lineage, (first, *rest) = lineage_of(checkpoint), checkpoint.training_data
    if lineage.labels:
        return f", trained with labels on {' and then on '.join((first, *rest))}"
    classifier = f", with a linear classifier for {rest[0]}" if rest else ""
    return f", trained by {lineage.name} on {first}, without labels{classifier}"


@dataclass(frozen=True)
class FamilyCard:
    """The statements of the cards about a family of official checkpoints.

    heading: its heading in the index.
    reference, cases: what the tests of this package compare with, and on which models; `names`: the source of names and shapes.
    layout: the layout of its Hub repositories; None for a family of files.
    citation: key in PAPERS to cite in addition to a row's papers.
    preprocessing: a note on preprocessing.
    results: a note on the publisher's results; `results_with_registers`: its continuation for models with registers.
    """

    heading: str
    reference: str
    cases: str
    names: str
    layout: str | None = None
    citation: str | None = None
    preprocessing: str = ""
    results: str = ""
    results_with_registers: str = ""


FAMILY_CARDS: Mapping[str, FamilyCard] = {
    "dino": FamilyCard(
        heading="DINO, by Meta AI: `.pth` files",
        reference="DINO's own `vision_transformer.py`",
        cases="ViT-S/8 and ViT-B/16, with their linear classifiers",
        names="DINO's own code",
        results=' The linear accuracy is that of the backbone with the classifier `head="linear"`.',
    ),
    "dinov2": FamilyCard(
        heading="DINOv2, by Meta AI: `.pth` files",
        reference="DINOv2's own code",
        cases="ViT-S/14 with and without registers, with their linear classifiers, and a small model with the SwiGLU of ViT-g",
        names="DINOv2's own code",
        results=' The linear accuracy is that of the backbone with the classifier `head="linear_1layer"`.',
        # its README has two tables, which agree on the models without registers
        results_with_registers=" A second table in its README gives 0.1 to 0.2 less.",
    ),
    "dinov3": FamilyCard(
        heading="DINOv3, by Meta AI: `.pth` files",
        reference="DINOv3's own code",
        cases="ViT-S/16 and ViT-S+/16, two blocks of ViT-7B/16 with its linear classifier, and a small model with separate final norms",
        names="DINOv3's own code",
    ),
    "google": FamilyCard(
        heading="Google: `.npz` files",
        reference="Google's `vit_jax`",
        cases="ViT-S/16, and ViT-B/32 with the layer before the classifier (pre_logits)",
        names="Google's own code",
        preprocessing="Google's code resizes with TensorFlow, bilinearly and without antialiasing. Pillow's bilinear filter, which is used "
        "here, antialiases, so pixels differ slightly from those of the published evaluation. ",
    ),
    "timm": FamilyCard(
        heading="timm, on the Hub",
        reference="timm 1.0.31",
        cases="ViT-B/8, four models with relative positions, DINOv3's ViT-S/16 and ViT-S+/16, and small models of every kind that timm has",
        names="timm 1.0.31",
        layout="timm's format",
        citation="10.5281/zenodo.4414861",
    ),
    "transformers": FamilyCard(
        heading="transformers, on the Hub",
        reference="transformers' own classes",
        cases="small models of the same types (ViT, DINOv2, DINOv2 with registers), and DINOv3's ViT-S/16",
        names="transformers' own classes",
        layout="the format of transformers",
    ),
}
