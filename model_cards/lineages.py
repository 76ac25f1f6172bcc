"""Official checkpoints in words: how their weights were trained, and what the cards state about each family."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..convert.sources.catalog import Checkpoint


@dataclass(frozen=True)
class Lineage:
    """Checkpoints that were trained in one way, in any format.

    paper: the arXiv number that identifies its checkpoints; names: a regular expression in their names, where others cite it, too.
    tags: its tags on the Hub.
    learns_from: what its pretraining reads besides images: labels, texts, or nothing; `method`: its name, where it has another.
    later: a sentence and a clause about data sets after the first, with the variables of `training` and `trained_on`.
    about: what it is, for newcomers; uses, limits: what its features are good for, and their limitations.
    pooling: how `pooler_output` differs from the vector that the original computes.
    """

    paper: str
    name: str
    tags: tuple[str, ...]
    learns_from: Literal["labels", "texts", "images"]
    about: str
    uses: str
    limits: tuple[str, ...] = ()
    pooling: str | None = None
    method: str | None = None
    names: str = ""
    later: tuple[str, str] = (
        "it was fine-tuned with labels on {data}, at {size} x {size} pixels",
        ", and fine-tuned with labels on {names}",
    )


LEARNS_FROM = {"labels": "with labels", "texts": "with the texts of its images", "images": "without labels"}
LINEAR_CLASSIFIER = (
    "a linear classifier was trained with labels on {data}, on frozen features",
    ", with a linear classifier for {names}",
)


MODEL_CARD_OF_DINOV2 = "[model card](https://github.com/facebookresearch/dinov2/blob/main/MODEL_CARD.md)"
ABOUT_DINOV2 = (
    "DINOv2 ([Oquab et al. 2023](https://arxiv.org/abs/2304.07193)) trains general-purpose features without labels, on 142 million "
    "images. It combines DINO's self-distillation, in which a student network predicts the outputs of a slowly moving teacher for "
    "other crops of the same image, with the prediction of masked patches (iBOT). ViT-g was trained from scratch; ViT-S, B and L were "
    f"distilled from it ({MODEL_CARD_OF_DINOV2})."
)
ABOUT_REGISTERS = (
    " This model also has four registers ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)): tokens for information that large "
    "ViTs otherwise store in a few background patches. They make feature maps and attention maps smoother."
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

ENCODER_OF_SIGLIP = "This is its encoder of images, without the attention pooling of the original (`gap` in its name)."
USES_SIGLIP = (
    "Use its patch features, for segmentation or as input of a language model, and their mean for classification with a linear layer. "
    "Comparing images with texts requires the original, with its encoder of texts."
)
POOLING_OF_SIGLIP = (
    "`pooler_output` is the mean of the patches, as in timm. The original pools by attention, with weights that these files lack: its "
    "vectors are others, and this mean was not trained to be compared with texts."
)
ABOUT_PALIGEMMA = (
    "The encoder is a SigLIP model ([Zhai et al. 2023](https://arxiv.org/abs/2303.15343)), which was trained further in PaliGemma, "
    "without its pooling."
)
USES_PALIGEMMA = "Use its patch features: for dense prediction, or as input of a language model."
PATCHES_OF_PALIGEMMA = (
    "`pooler_output` is the mean of the patches, as in timm. PaliGemma reads every patch and no pooled vector: this mean was not "
    "trained."
)
PALIGEMMA = ("it was trained further as a part of the whole model on {data}", ", then as a part of {lineage} on {names}")

# The lineage of a checkpoint is the first whose paper and names it has
LINEAGES = (
    Lineage(
        paper="2508.10104",
        name="DINOv3",
        tags=("dinov3", "registers"),
        learns_from="images",
        later=LINEAR_CLASSIFIER,
        about=ABOUT_DINOV3,
        uses=USES_DINOV3,
    ),
    Lineage(
        paper="2603.22387",
        name="EUPE",
        tags=("eupe", "registers"),
        learns_from="images",
        later=LINEAR_CLASSIFIER,
        about="EUPE, the Efficient Universal Perception Encoder ([Zhu et al. 2026](https://arxiv.org/abs/2603.22387)), trains small "
        "encoders by distillation, so that one model serves the understanding of images, dense prediction and vision-language models. "
        "The architecture is that of DINOv3.",
        uses="Use its frozen features: for classification and retrieval, for segmentation and depth, and as input of a language model.",
    ),
    Lineage(
        paper="2607.05247",
        name="LingBot-Vision",
        tags=("lingbot-vision", "registers"),
        learns_from="images",
        later=LINEAR_CLASSIFIER,
        about="LingBot-Vision ([Fu et al. 2026](https://arxiv.org/abs/2607.05247)) trains without labels for dense, spatial tasks: the "
        "patches that are masked, and must be predicted, are those at boundaries, which a teacher network finds. ViT-S, B and L were "
        "distilled from ViT-g. The architecture is that of DINOv3.",
        uses="Use its frozen patch features: for segmentation, depth, and matching between images and in videos.",
    ),
    Lineage(
        paper="2309.16588",
        names=r"\.sbb",
        name="timm's SBB",
        tags=("sbb", "registers"),
        learns_from="labels",
        about="A Vision Transformer of [timm](https://github.com/huggingface/pytorch-image-models), from its author's search for better "
        "baselines (*Searching for Better ViT Baselines*): shapes between ViT-Ti and ViT-B, registers "
        "([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)), LayerScale, and the mean of the patches instead of [CLS].",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2309.16588",
        name="DINOv2 with registers",
        tags=("dinov2", "registers"),
        learns_from="images",
        later=LINEAR_CLASSIFIER,
        about=ABOUT_DINOV2 + ABOUT_REGISTERS,
        uses=USES_DINOV2,
        limits=LIMITS_DINOV2,
    ),
    Lineage(
        paper="2304.07193",
        name="DINOv2",
        tags=("dinov2",),
        learns_from="images",
        later=LINEAR_CLASSIFIER,
        about=ABOUT_DINOV2,
        uses=USES_DINOV2,
        limits=LIMITS_DINOV2,
    ),
    Lineage(
        paper="2104.14294",
        name="DINO",
        tags=("dino",),
        learns_from="images",
        later=LINEAR_CLASSIFIER,
        about="DINO ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)) trains a Vision Transformer without labels, by "
        "self-distillation: a student network sees crops of an image and learns to predict the outputs of a teacher network, the moving "
        "average of the student, for other crops of the image. Similar images get similar features, and the attention of [CLS], the "
        "token for the whole image, in the last block follows the outlines of objects, although no outlines were used for training.",
        uses="Use it for features of whole images (nearest neighbors, retrieval, copy detection, a linear classifier), and for attention "
        "maps and patch features that separate objects without labels.",
    ),
    Lineage(
        paper="2111.09883",
        name="timm's ViT with relative positions",
        tags=("relpos",),
        learns_from="labels",
        about="A Vision Transformer of [timm](https://github.com/huggingface/pytorch-image-models) without position "
        "embeddings. Instead, a small MLP maps the offset between two patches, on a logarithmic scale, to a bias of their attention, "
        "as in Swin Transformer V2 ([Liu et al. 2021](https://arxiv.org/abs/2111.09883)). It was trained in timm with a recipe close "
        "to Swin's (`sw` in its name).",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2106.10270",
        name="AugReg ViT",
        tags=("augreg",),
        learns_from="labels",
        about="A Vision Transformer from the study *How to train your ViT?* "
        "([Steiner et al. 2021](https://arxiv.org/abs/2106.10270)), which measured how far data augmentation and regularization "
        "(together *augreg*) replace more images. The architecture is that of the first Vision Transformer "
        "([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)); the training differs.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2604.12012",
        name="TIPSv2",
        tags=("tips",),
        learns_from="texts",
        about="TIPSv2 ([Cao et al. 2026](https://arxiv.org/abs/2604.12012)) trains an encoder of images with texts of several lengths "
        "and, as DINOv2 does, with masked patches and self-distillation, so that single patches agree with texts. This is its encoder "
        "of images, without that of texts. A second [CLS] token of the original stands here as a register.",
        uses="Use its patch features for segmentation and depth, and [CLS] for retrieval and classification. Comparing images with texts "
        "requires its encoder of texts.",
    ),
    Lineage(
        paper="2412.03555",
        name="PaliGemma 2",
        tags=("paligemma", "siglip"),
        learns_from="texts",
        method="SigLIP",
        later=PALIGEMMA,
        about="The image encoder of PaliGemma 2 ([Steiner et al. 2024](https://arxiv.org/abs/2412.03555)), a vision-language model that "
        f"answers in text. {ABOUT_PALIGEMMA}",
        uses=USES_PALIGEMMA,
        pooling=PATCHES_OF_PALIGEMMA,
    ),
    Lineage(
        paper="2407.07726",
        name="PaliGemma",
        tags=("paligemma", "siglip"),
        learns_from="texts",
        method="SigLIP",
        later=PALIGEMMA,
        about="The image encoder of PaliGemma ([Beyer et al. 2024](https://arxiv.org/abs/2407.07726)), a vision-language model that "
        f"answers in text. {ABOUT_PALIGEMMA}",
        uses=USES_PALIGEMMA,
        pooling=PATCHES_OF_PALIGEMMA,
    ),
    Lineage(
        paper="2502.14786",
        name="SigLIP 2",
        tags=("siglip",),
        learns_from="texts",
        about="SigLIP 2 ([Tschannen et al. 2025](https://arxiv.org/abs/2502.14786)) trains an encoder of images and one of texts in many "
        "languages, so that matching pairs are similar. To the sigmoid loss of SigLIP ([Zhai et al. "
        "2023](https://arxiv.org/abs/2303.15343)) it adds captions, locations of objects, self-distillation and masked patches, for "
        f"better patch features. {ENCODER_OF_SIGLIP}",
        uses=USES_SIGLIP,
        pooling=POOLING_OF_SIGLIP,
    ),
    Lineage(
        paper="2303.15343",
        name="SigLIP",
        tags=("siglip",),
        learns_from="texts",
        about="SigLIP ([Zhai et al. 2023](https://arxiv.org/abs/2303.15343)) trains an encoder of images and one of texts, so that "
        "matching pairs are similar, with a loss that judges each pair by itself. "
        f"{ENCODER_OF_SIGLIP}",
        uses=USES_SIGLIP,
        pooling=POOLING_OF_SIGLIP,
    ),
    Lineage(
        paper="2301.08243",
        name="I-JEPA",
        tags=("ijepa",),
        learns_from="images",
        about="I-JEPA ([Assran et al. 2023](https://arxiv.org/abs/2301.08243)) trains without labels and without augmented views: "
        "from one part of an image, it predicts the features of other parts, which a moving average of the encoder computes. The "
        "model has no [CLS].",
        uses="Use the mean of its patches for classification with a linear layer, and its patch features for counting and depth.",
    ),
    Lineage(
        paper="2111.06377",
        name="MAE",
        tags=("mae",),
        learns_from="images",
        about="MAE, a masked autoencoder ([He et al. 2021](https://arxiv.org/abs/2111.06377)), hides 75% of the patches of an image, "
        "encodes the others, and trains a small decoder to reconstruct the hidden pixels. This is the encoder, without the decoder.",
        uses="Use the classifier of a fine-tuned file, or fine-tune it on your images. Without fine-tuning, its features are less useful "
        "than DINO's for nearest neighbors and linear classifiers.",
        pooling="`pooler_output` is [CLS] in files of pretraining, as in its authors' linear evaluation, and the mean of the patches in "
        "fine-tuned files, as in their fine-tuning.",
    ),
    Lineage(
        paper="2211.07636",
        name="EVA",
        tags=("eva",),
        learns_from="images",
        about="EVA ([Fang et al. 2022](https://arxiv.org/abs/2211.07636)) hides patches and trains a Vision Transformer to predict the "
        "features that a CLIP model computes for them. EVA-L learns from EVA-CLIP.",
        uses="Use its classifier, or fine-tune it on your images.",
    ),
    Lineage(
        paper="2212.08013",
        name="FlexiViT",
        tags=("flexivit",),
        learns_from="labels",
        about="FlexiViT ([Beyer et al. 2022](https://arxiv.org/abs/2212.08013)) trains one Vision Transformer with patches of random "
        "sizes, from 8 to 48 pixels, so that the size can be chosen later. The file holds patches of 16 pixels.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2204.07118",
        name="DeiT III",
        tags=("deit",),
        learns_from="labels",
        about="DeiT III ([Touvron et al. 2022](https://arxiv.org/abs/2204.07118)) trains plain Vision Transformers with labels, with "
        "a recipe that has three augmentations, LayerScale, and a loss that judges each class by itself. [CLS] has no position.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2012.12877",
        name="DeiT",
        tags=("deit",),
        learns_from="labels",
        about="DeiT ([Touvron et al. 2020](https://arxiv.org/abs/2012.12877)) trains a Vision Transformer with labels on ImageNet-1k "
        "alone, by strong augmentation. This model was trained without distillation.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2106.01548",
        name="ViT with SAM",
        tags=("sam-optimizer",),
        learns_from="labels",
        about="A Vision Transformer that was trained with the optimizer SAM, which looks for flat minima of the loss, instead of strong "
        "augmentation ([Chen et al. 2021](https://arxiv.org/abs/2106.01548)). It is not the Segment Anything Model.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2104.10972",
        name="ImageNet-21k-P",
        tags=(),
        learns_from="labels",
        about="A Vision Transformer from a study of pretraining on ImageNet-21k ([Ridnik et al. "
        "2021](https://arxiv.org/abs/2104.10972)), which removes rare classes and trains with the hierarchy of the others.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2203.07845",
        name="Bamboo",
        tags=("bamboo",),
        learns_from="labels",
        about="A Vision Transformer trained on Bamboo ([Zhang et al. 2022](https://arxiv.org/abs/2203.07845)), a dataset that merges "
        "public datasets and adds images by active learning.",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2010.11929",
        names=r"test_vit",
        name="timm's test model",
        tags=(),
        learns_from="labels",
        about="A tiny Vision Transformer that [timm](https://github.com/huggingface/pytorch-image-models) publishes for tests of "
        "software.",
        uses="Use it where a test requires real weights.",
        limits=("Its accuracy is low.",),
    ),
    Lineage(
        paper="2010.11929",
        names=r"\.sw_in",
        name="timm's ViT",
        tags=(),
        learns_from="labels",
        about="A Vision Transformer that was trained in [timm](https://github.com/huggingface/pytorch-image-models) with a recipe "
        "close to Swin's (`sw` in its name), and reads the mean of the patches; it has no [CLS].",
        uses=USES_SUPERVISED,
    ),
    Lineage(
        paper="2010.11929",
        name="ViT",
        tags=(),
        learns_from="labels",
        about="The first Vision Transformer ([Dosovitskiy et al. 2020](https://arxiv.org/abs/2010.11929)). It splits an image "
        "into patches, makes each patch a token, prepends a [CLS] token for the whole image, and applies a standard Transformer "
        "encoder; a classifier reads [CLS]. Google trained it with labels.",
        uses=USES_SUPERVISED,
    ),
)


def lineage_of(checkpoint: Checkpoint) -> Lineage:
    """Return the lineage of an official checkpoint, from the papers in its row and its name."""
    return next(lineage for lineage in LINEAGES if lineage.paper in checkpoint.paper and re.search(lineage.names, checkpoint.name))


@dataclass(frozen=True)
class Dataset:
    """A dataset in words, and its id on the Hub where it has one; `images`: the kind of its images."""

    about: str
    hub_id: str | None = None
    images: str = "photographs, most of them from the web"


DATASETS: Mapping[str, Dataset] = {
    "ImageNet-1k": Dataset("1.28 million images of 1,000 classes", "imagenet-1k"),
    "ImageNet-12k": Dataset("12 million images of 11,821 classes, a part of ImageNet-22k"),
    "ImageNet-21k": Dataset("14 million images of 21,843 classes", "imagenet-21k"),
    "ImageNet-21k-P": Dataset("12.4 million images of 11,221 classes: ImageNet-21k without rare classes"),
    "ImageNet-22k": Dataset("14 million images of 21,841 classes"),
    "LVD-142M": Dataset("142 million images from the web, selected for their similarity to curated datasets; not published"),
    "Bamboo": Dataset("69 million labeled images from public datasets and the web"),
    "WebLI": Dataset("10 billion images from the web, with texts; not published"),
    "PaliGemma mixture": Dataset("captions, questions and object locations for images from the web; not published"),
    "PaliGemma transfer tasks": Dataset("a mixture of public data sets of captions and questions"),
    "DOCCI": Dataset("15,000 images with long descriptions"),
    "OCR-VQA": Dataset("207,000 book covers with questions"),
    "RefCOCO": Dataset("phrases that refer to objects of COCO images, with masks"),
    "LVD-1689M": Dataset("1,689 million images, selected from public posts on Instagram and curated datasets; not published"),
    "SAT-493M": Dataset(
        "493 million satellite images of 512 x 512 pixels, at 0.6 m per pixel; not published", images="satellite images"
    ),
    "LingBot-Vision's images": Dataset(
        "a collection that its README neither names nor links", images="images that are not described"
    ),
}


def training(checkpoint: Checkpoint) -> str:
    """Return sentences about the training and its data."""
    lineage = lineage_of(checkpoint)
    about = {f"{name} ({DATASETS[name].about})": None for name in checkpoint.training_data}
    first, *rest = about if len(about) == len(checkpoint.training_data) else [*about, *checkpoint.training_data[1:]]
    alone = lineage.learns_from == "labels" and not rest
    text = f"{'Trained' if alone else 'Pretrained'} {LEARNS_FROM[lineage.learns_from]} on {first}."
    if rest:
        then = lineage.later[0].format(data=" and then on ".join(rest), size=checkpoint.architecture["image_size"])
        text += f" Then {then}."
    return text


def trained_on(checkpoint: Checkpoint) -> str:
    """Return a clause about the training, for a summary."""
    lineage, (first, *rest) = lineage_of(checkpoint), checkpoint.training_data
    if lineage.learns_from == "labels":
        return f", trained with labels on {' and then on '.join((first, *rest))}"
    then = lineage.later[1].format(names=" and ".join(rest), lineage=lineage.name) if rest else ""
    return f", trained by {lineage.method or lineage.name} on {first}, {LEARNS_FROM[lineage.learns_from]}{then}"


@dataclass(frozen=True)
class FamilyCard:
    """The statements of the cards about a family of official checkpoints.

    heading: its heading in the index; `files`: what is read of it.
    reference, cases: what the tests of this package compare with, and on which models; `names`: the source of names and shapes.
    layout: the layout of its Hub repositories; None for a family of files.
    citation: key in PAPERS to cite in addition to a row's papers.
    preprocessing: a note on preprocessing.
    results: a note on the publisher's results; `results_with_registers`: its continuation for models with registers.
    """

    heading: str
    files: str
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
        files="backbones, training checkpoints and linear classifiers (`.pth`)",
        reference="DINO's own `vision_transformer.py`",
        cases="ViT-S/8 and ViT-B/16, with their linear classifiers",
        names="DINO's own code",
        results=' The linear accuracy is that of the backbone with the classifier `head="linear"`.',
    ),
    "dinov2": FamilyCard(
        heading="DINOv2, by Meta AI: `.pth` files",
        files="backbones, training checkpoints and linear classifiers (`.pth`)",
        reference="DINOv2's own code",
        cases="ViT-S/14 with and without registers, with their linear classifiers, and a small model with the SwiGLU of ViT-g",
        names="DINOv2's own code",
        results=' The linear accuracy is that of the backbone with the classifier `head="linear_1layer"`.',
        # its README has two tables, which agree on the models without registers
        results_with_registers=" A second table in its README gives 0.1 to 0.2 less.",
    ),
    "dinov3": FamilyCard(
        heading="DINOv3, by Meta AI: `.pth` files",
        files="backbones, training checkpoints and linear classifiers (`.pth`)",
        reference="DINOv3's own code",
        cases="ViT-S/16 and ViT-S+/16, two blocks of ViT-7B/16 with its linear classifier, and a small model with separate final norms",
        names="DINOv3's own code",
    ),
    "google": FamilyCard(
        heading="Google: `.npz` files",
        files="checkpoints of `vit_jax` (`.npz`)",
        reference="Google's `vit_jax`",
        cases="ViT-S/16, and ViT-B/32 with the layer before the classifier (pre_logits)",
        names="Google's own code",
        preprocessing="Google's code resizes with TensorFlow, bilinearly and without antialiasing. Pillow's bilinear filter, which is "
        "used here, antialiases, so pixels differ slightly from those of the published evaluation. ",
    ),
    "mae": FamilyCard(
        heading="MAE, by Meta AI: `.pth` files",
        files="encoders, training checkpoints with the decoder, and fine-tuned models (`.pth`)",
        reference="timm 1.0.31, whose classes MAE's code extends",
        cases="small files in the layouts of pretraining and fine-tuning",
        names="timm 1.0.31, which publishes the same weights",
        results=" The linear accuracy is that of a linear classifier that was not published.",
    ),
    "deit": FamilyCard(
        heading="DeiT and DeiT III, by Meta AI: `.pth` files",
        files="models with their classifier (`.pth`)",
        reference="timm 1.0.31, whose classes DeiT's code extends",
        cases="small files in the layouts of DeiT and of DeiT III",
        names="timm 1.0.31, which publishes the same weights",
    ),
    "ijepa": FamilyCard(
        heading="I-JEPA, by Meta AI: `.pth.tar` files",
        files="training checkpoints (`.pth.tar`)",
        reference="transformers' `IJepaModel`",
        cases="a small file in the layout of its training runs",
        names="timm 1.0.31, which reads these files",
    ),
    "timm": FamilyCard(
        heading="timm, on the Hub",
        files="folders and Hub repositories, state dicts, training checkpoints",
        reference="timm 1.0.31",
        cases="ViT-B/8, four models with relative positions, DINOv3's ViT-S/16 and ViT-S+/16, and small models of every kind that timm has",
        names="timm 1.0.31",
        layout="timm's format",
        citation="10.5281/zenodo.4414861",
    ),
    "transformers": FamilyCard(
        heading="transformers, on the Hub",
        files="folders and Hub repositories",
        reference="transformers' own classes",
        cases="small models of the same types (ViT, DINOv2, DINOv2 with registers), and DINOv3's ViT-S/16",
        names="transformers' own classes",
        layout="the format of transformers",
    ),
}
