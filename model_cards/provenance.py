"""The sources of the facts about an official checkpoint, as links, and the results that its publisher reports."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import EvalResult

from ..convert.sources.catalog import Checkpoint, checkpoints, find_checkpoint
from .descriptions import markdown_table
from .lineages import FAMILY_CARDS

HUB, GITHUB = "https://huggingface.co", "https://github.com"

# Fields of the catalog with a source, in the order of the table
FIELDS = {
    "url": "file",
    "hub_id": "name on the Hub",
    "access": "access",
    "head_urls": "files of classifiers",
    "head_recipe": "inputs of the classifiers",
    "architecture": "architecture",
    "image_size": "image size",
    "num_classes": "number of classes",
    "params": "parameters",
    "preprocessing": "preprocessing",
    "training_data": "training data",
    "metrics": "results",
    "same_weights_as": "same weights",
    "license": "license",
    "paper": "papers",
}

# owner/repository@commit:path, a release for the commit, or without the commit; a leading "Hub" stands for the Hub instead of GitHub
FILE = re.compile(
    r"(?P<hub>Hub )?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<commit>[0-9a-f]{7,40}|v\d+(?:\.\d+)*))?:(?P<path>[\w./-]*[\w/])"
    r"|arXiv (?P<arxiv>\d{4}\.\d{5})"
    r"|(?P<page>(?:timm )?Hub (?:page|tags?|cards)\b|page of the Hub repository|timm tag [\w.]+)"
)


def load_name(checkpoint: Checkpoint) -> str:
    """Return the name of an official checkpoint for `vitrail.load`: its Hub id, or else its name in the catalog."""
    return checkpoint.hub_id or checkpoint.name


def file_links(text: str) -> list[tuple[str, str]]:
    """Return the name and address of each file in a source."""
    return [(_file_name(match), _file_url(match)) for match in FILE.finditer(text) if match["repository"]]


def linked(text: str, checkpoint: Checkpoint) -> str:
    """Return a source of the catalog with links."""

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
    """Return a link to a checkpoint: its page on the Hub, or the document that lists its file."""
    page = f"{HUB}/{checkpoint.hub_id}" if checkpoint.hub_id else file_links(checkpoint.sources["url"] or "")[0][1]
    return f"[`{load_name(checkpoint)}`]({page})"


def sources_table(checkpoint: Checkpoint) -> str:
    """Return the table of facts and their sources."""
    facts: dict[str, list[str]] = {}
    for field, name in FIELDS.items():
        if source := checkpoint.sources.get(field):
            facts.setdefault(linked(source, checkpoint), []).append(name)
    return markdown_table(("Fact", "Source"), [(", ".join(names), source) for source, names in facts.items()])


def same_weights(checkpoint: Checkpoint) -> list[Checkpoint]:
    """Return the other rows of the catalog with the same weights in another format."""
    original = checkpoint.same_weights_as or checkpoint.name
    return [row for row in checkpoints() if row is not checkpoint and original in (row.name, row.same_weights_as)]


def files(checkpoint: Checkpoint) -> str:
    """Return a sentence about the location of the weights."""

    def file(url: str) -> str:
        return f"[`{url.rpartition('/')[2]}`]({url})"

    if layout := FAMILY_CARDS[checkpoint.family].layout:
        upstream = checkpoint.url if checkpoint.url != f"{HUB}/{checkpoint.hub_id}" else None
        converted = f", converted from {file(upstream)}" if upstream else ""
        return f"It is published as {checkpoint_link(checkpoint)} on the Hub, in {layout}{converted}."
    sentence = f"It is published as {file(checkpoint.url or '')}"
    if checkpoint.full_checkpoint_url:
        return f"{sentence}, and the full training state as {file(checkpoint.full_checkpoint_url)}."
    if checkpoint.access:
        return (
            f"{sentence}. This address is refused (HTTP 403) without the query that its publisher mails to you: [accept the license]"
            f"({checkpoint.access}), then pass the link from the mail, or the downloaded file."
        )
    return f"{sentence}."


def relatives(checkpoint: Checkpoint) -> str:
    """Return links to the same weights in other formats, except the first one."""
    return ", ".join(checkpoint_link(row) for row in same_weights(checkpoint) if row.name != checkpoint.same_weights_as)


@dataclass(frozen=True)
class Metric:
    """A result that publishers report: its short name, and the classifier it measures."""

    name: str
    classifier: str


METRICS: Mapping[str, Metric] = {
    "imagenet_knn_top1": Metric(
        "k-NN top-1", "nearest neighbors: the training images with the most similar features vote; nothing is trained"
    ),
    "imagenet_linear_top1": Metric("linear top-1", "a linear classifier, trained on frozen features"),
    "imagenet_top1": Metric("top-1", "the classifier in the file"),
    "imagenet_top5": Metric("top-5", "the classifier in the file; the label is among the five most probable classes"),
}


def published_metrics(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the results that the publisher reports, in percent."""
    return {name: value for name in METRICS if (value := checkpoint.metrics[name]) is not None}


def published_table(checkpoint: Checkpoint) -> str:
    """Return the table of the publisher's results."""
    rows = [(METRICS[name].name, f"{value} %", METRICS[name].classifier) for name, value in published_metrics(checkpoint).items()]
    return markdown_table(("Accuracy on ImageNet-1k", "Value", "Classifier"), rows)


def eval_results(checkpoint: Checkpoint) -> list[EvalResult]:
    """Return the publisher's results for the model-index of a card's metadata, with their source."""
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
    """Return the row with the same weights in the format of their first publication."""
    return find_checkpoint(checkpoint.same_weights_as) if checkpoint.same_weights_as else None
