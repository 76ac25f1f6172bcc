"""Where the facts about an official checkpoint come from, as links, and the results that its publisher reports."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import EvalResult

from ..convert.sources.catalog import Checkpoint, checkpoints, find_checkpoint
from .descriptions import markdown_table

HUB, GITHUB = "https://huggingface.co", "https://github.com"

# What the catalogue names a source for, in the order of the table
FIELDS = {
    "url": "file",
    "hub_id": "name on the Hub",
    "head_urls": "files of classifiers",
    "head_recipe": "what the classifiers read",
    "architecture": "architecture",
    "image_size": "image size",
    "num_classes": "number of classes",
    "params": "parameters",
    "preprocessing": "preparation of images",
    "training_data": "training data",
    "metrics": "results",
    "same_weights_as": "same weights",
    "license": "licence",
    "paper": "papers",
}

# owner/repository@commit:path, or without the commit; "Hub" before it says that it lies on the Hub and not on GitHub
FILE = re.compile(
    r"(?P<hub>Hub )?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<commit>[0-9a-f]{7,40}))?:(?P<path>[\w./-]*[\w/])"
    r"|arXiv (?P<arxiv>\d{4}\.\d{5})"
    r"|(?P<page>(?:timm )?Hub (?:page|tags?|cards)\b|page of the Hub repository|timm tag [\w.]+)"
)


def load_name(checkpoint: Checkpoint) -> str:
    """What `vitrail.load` calls an official checkpoint: its Hub id, or else its name in the catalogue."""
    return checkpoint.hub_id or checkpoint.name


def file_links(text: str) -> list[tuple[str, str]]:
    """The files that a source names: what to call each, and its address."""
    return [(_file_name(match), _file_url(match)) for match in FILE.finditer(text) if match["repository"]]


def linked(text: str, checkpoint: Checkpoint) -> str:
    """A source of the catalogue, with links to what it names."""

    def link(match: re.Match[str]) -> str:
        if match["repository"]:
            return f"[{_file_name(match)}]({_file_url(match)})"
        if match["arxiv"]:
            return f"[arXiv {match['arxiv']}](https://arxiv.org/abs/{match['arxiv']})"
        return f"[{match['page']}]({HUB}/{checkpoint.hub_id})" if checkpoint.hub_id else match["page"]

    return FILE.sub(link, text)


def _file_name(match: re.Match[str]) -> str:
    return f"{match['repository']}, {match['path']}"


def _file_url(match: re.Match[str]) -> str:
    where = f"{HUB if match['hub'] else GITHUB}/{match['repository']}"
    return f"{where}/blob/{match['commit'] or 'main'}/{match['path']}"


def checkpoint_link(checkpoint: Checkpoint) -> str:
    """A link to a checkpoint: its page on the Hub, or the document that lists its file."""
    page = f"{HUB}/{checkpoint.hub_id}" if checkpoint.hub_id else file_links(checkpoint.sources["url"] or "")[0][1]
    return f"[`{load_name(checkpoint)}`]({page})"


def sources_table(checkpoint: Checkpoint) -> str:
    """For the facts of the catalogue, the documents that they come from."""
    facts: dict[str, list[str]] = {}
    for field, name in FIELDS.items():
        if source := checkpoint.sources.get(field):
            facts.setdefault(linked(source, checkpoint), []).append(name)
    return markdown_table(("Fact", "Source"), [(", ".join(names), source) for source, names in facts.items()])


def same_weights(checkpoint: Checkpoint) -> list[Checkpoint]:
    """The other rows of the catalogue that hold the same weights, in another format."""
    original = checkpoint.same_weights_as or checkpoint.name
    return [row for row in checkpoints() if row is not checkpoint and original in (row.name, row.same_weights_as)]


def files(checkpoint: Checkpoint) -> str:
    """A sentence about where the weights lie."""

    def file(url: str) -> str:
        return f"[`{url.rpartition('/')[2]}`]({url})"

    if checkpoint.format == "transformers-hub":
        return f"It is published as {checkpoint_link(checkpoint)} on the Hub, in the format of transformers."
    if checkpoint.format == "timm-hub":
        made_of = f", made of {file(checkpoint.url)}" if checkpoint.url else ""
        return f"It is published as {checkpoint_link(checkpoint)} on the Hub, in timm's format{made_of}."
    sentence = f"It is published as {file(checkpoint.url or '')}"
    return (
        f"{sentence}, and the whole training state as {file(checkpoint.full_checkpoint_url)}."
        if checkpoint.full_checkpoint_url
        else f"{sentence}."
    )


def relatives(checkpoint: Checkpoint) -> str:
    """Where else the same weights are published, beside the format in which they were first."""
    return ", ".join(checkpoint_link(row) for row in same_weights(checkpoint) if row.name != checkpoint.same_weights_as)


@dataclass(frozen=True)
class Metric:
    """A result that publishers report: its short name, and what it is the accuracy of."""

    name: str
    of: str


METRICS: Mapping[str, Metric] = {
    "imagenet_knn_top1": Metric(
        "k-NN top-1", "nearest neighbours: the training images with the most similar features vote; nothing is trained"
    ),
    "imagenet_linear_top1": Metric("linear top-1", "a linear classifier that was trained on features that stay as they are"),
    "imagenet_top1": Metric("top-1", "the classifier in the file"),
    "imagenet_top5": Metric("top-5", "the classifier in the file: the right class is among its first five"),
}


def published_metrics(checkpoint: Checkpoint) -> dict[str, float]:
    """The results that the publisher reports, in percent; those that it does not report are left out."""
    return {name: value for name in METRICS if (value := checkpoint.metrics[name]) is not None}


def published_table(checkpoint: Checkpoint) -> str:
    """The publisher's results."""
    rows = [(METRICS[name].name, f"{value} %", METRICS[name].of) for name, value in published_metrics(checkpoint).items()]
    return markdown_table(("Accuracy on ImageNet-1k", "Value", "Of"), rows)


def eval_results(checkpoint: Checkpoint) -> list[EvalResult]:
    """The publisher's results for the model-index of a card's metadata, with their source."""
    metrics = published_metrics(checkpoint)
    if not metrics:
        return []
    source_name, source_url = file_links(checkpoint.sources["metrics"] or "")[0]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagenet-1k",
            dataset_name="ImageNet-1k",
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=f"{METRICS[name].name} accuracy (%)",
            metric_value=value,
            source_name=source_name,
            source_url=source_url,
        )
        for name, value in metrics.items()
    ]


def original_of(checkpoint: Checkpoint) -> Checkpoint | None:
    """The row whose weights these are, in the format in which they were first published."""
    return find_checkpoint(checkpoint.same_weights_as) if checkpoint.same_weights_as else None
