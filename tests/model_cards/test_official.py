"""model_cards/official is what the catalog and the template give now, for every card; one card of each format is checked in depth."""

import ast
import re
from urllib.parse import urlsplit

import pytest
import yaml
from huggingface_hub import ModelCard

import paths
from vitrail.convert.sources.catalog import Checkpoint, checkpoints, find_checkpoint
from vitrail.model_cards import render
from vitrail.model_cards.card import official_card

FOLDER = paths.CHECKOUT / "model_cards" / "official"
RENDER = "the cards are out of date: run `python -m vitrail.model_cards.render model_cards/official`"
ROWS = checkpoints()

# huggingface.co/docs/hub/repositories-licenses, those that such checkpoints have
LICENSES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0"}
LICENSE_LINKS = {
    "dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    "fair-noncommercial-research-license": "https://github.com/facebookresearch/EUPE/blob/main/LICENSE.md",
}
LIBRARIES = {"transformers", "timm"}
PIPELINES = {"image-classification", "image-feature-extraction"}
DATASETS = {"imagenet-1k", "imagenet-21k"}  # by the names that the Hub's own cards of google/vit-* give
HOSTS = {"github.com", "huggingface.co", "arxiv.org", "dl.fbaipublicfiles.com", "storage.googleapis.com", "doi.org", "ai.meta.com"}

# huggingface/hub-docs, modelcard.md: for each object of a model-index the fields it must and may have, with their types
SCHEMA = {
    "model": ({"name": str, "results": list}, {}),
    "result": ({"task": dict, "dataset": dict, "metrics": list}, {"source": dict}),
    "task": ({"type": str}, {"name": str}),
    "dataset": ({"type": str, "name": str}, {"config": str, "split": str, "revision": str, "args": dict}),
    "metric": ({"type": str, "value": float}, {"name": str, "config": str, "args": dict, "verified": bool}),
    "source": ({"url": str}, {"name": str}),
}


def first_of_each_format() -> list[Checkpoint]:
    """One row of each format, with results and a classifier where the format has any."""
    by_format: dict[str, Checkpoint] = {}
    for row in sorted(ROWS, key=lambda row: (not any(row.metrics.values()), not row.has_classifier)):
        by_format.setdefault(row.format, row)
    return list(by_format.values())


@pytest.fixture(scope="module", params=first_of_each_format(), ids=lambda row: row.name)
def row(request) -> Checkpoint:
    return request.param


@pytest.fixture(scope="module")
def text(row) -> str:
    return (FOLDER / f"{row.name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def metadata(text):
    """The first lines as they are in the file, read by a parser that is not the Hub client's."""
    return yaml.safe_load(text.split("---\n")[1])


def test_the_cards_are_what_the_template_gives_now():
    cards = {row.name: (FOLDER / f"{row.name}.md").read_text(encoding="utf-8") for row in ROWS}
    assert [row.name for row in ROWS if cards[row.name] != str(official_card(row)).rstrip("\n") + "\n"] == [], RENDER


def test_a_card_states_where_the_original_pools_otherwise():
    gap = [row for row in ROWS if re.search(r"siglip_gap|\.mae|mae-vit", row.name)]
    assert len(gap) == 44 + 3 + 6
    cards = {row.name: (FOLDER / f"{row.name}.md").read_text(encoding="utf-8") for row in gap}
    assert [name for name, card in cards.items() if "\n- `pooler_output` is " not in card] == []


def test_the_index_is_what_the_catalog_gives_now():
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == render.index(), RENDER


def test_there_is_nothing_else_in_the_folder():
    expected = {f"{row.name}.md" for row in ROWS} | {"README.md"}
    assert {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"} == expected, RENDER


def test_the_program_writes_these_files(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "checkpoints", lambda: ROWS[:2])
    render.write_model_cards(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", f"{ROWS[0].name}.md", f"{ROWS[1].name}.md"}
    for row in ROWS[:2]:
        assert (tmp_path / f"{row.name}.md").read_bytes() == (FOLDER / f"{row.name}.md").read_bytes()


def test_the_index_links_to_every_card():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    links = dict(re.findall(r"^\| \[(.+?)\]\((.+?)\) \|", index, re.MULTILINE))
    assert links == {row.hub_id or row.name: f"{row.name}.md" for row in ROWS}
    assert f"each of the {len(ROWS)} checkpoints" in index


# ---------------------------------------------------------------------------------------------------------------- metadata


def check(kind: str, value: dict) -> None:
    required, optional = SCHEMA[kind]
    assert required.keys() <= value.keys() <= required.keys() | optional.keys(), kind
    for name, content in value.items():
        assert isinstance(content, (required | optional)[name]), f"{kind}: {name}"


def test_the_metadata_is_of_the_form_that_the_hub_wants(row, metadata):
    optional = {"model-index", "datasets", "license_name", "license_link"}
    assert metadata.keys() - optional == {"license", "library_name", "pipeline_tag", "tags"}
    if row.license in LICENSES:
        assert metadata["license"] == row.license
        assert "license_name" not in metadata
    else:  # huggingface.co/docs/hub/repositories-licenses: a license without an identifier
        assert (metadata["license"], metadata["license_name"]) == ("other", row.license)
        assert metadata["license_link"] == LICENSE_LINKS[row.license]
    assert metadata["library_name"] in LIBRARIES
    assert metadata["pipeline_tag"] in PIPELINES
    assert all(isinstance(tag, str) and re.fullmatch(r"[a-z0-9_-]+", tag) for tag in metadata["tags"])
    assert len(metadata["tags"]) == len(set(metadata["tags"]))
    assert "base_model" not in metadata
    assert set(metadata.get("datasets", [])) == DATASETS & {name.lower() for name in row.training_data}
    for model in metadata.get("model-index", []):
        check("model", model)
        for result in model["results"]:
            check("result", result)
            check("task", result["task"])
            check("dataset", result["dataset"])
            check("source", result["source"])
            for metric in result["metrics"]:
                check("metric", metric)


def test_the_results_are_those_of_the_catalog_with_their_source(row, metadata):
    found = [
        (metric["value"], result["source"]["url"])
        for model in metadata.get("model-index", [])
        for result in model["results"]
        for metric in result["metrics"]
    ]
    metrics = [value for value in row.metrics.values() if value is not None]
    assert [value for value, _ in found] == metrics
    if metrics:
        repository, commit, path = re.match(r"(\S+?)@(\w+):(\S+?\.\w+)", row.sources["metrics"]).groups()
        assert {url for _, url in found} == {f"https://github.com/{repository}/blob/{commit}/{path}"}


def test_the_hub_client_reads_it_and_writes_the_same(row, text):
    card = ModelCard(text)
    assert str(card) == text
    results = card.data.eval_results or []
    assert [result.metric_value for result in results] == [value for value in row.metrics.values() if value is not None]
    assert all(result.source_name and result.source_url and not result.verified for result in results)


# ------------------------------------------------------------------------------------------------------------------- text


def test_the_text_is_whole(row, text):
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        *("Model description", "Training", "Intended uses and limitations", "Usage", "Preprocessing", "Architecture"),
        *("Verification", "Published results", "License", "Citation", "Sources"),
    ]
    assert text.count("\n# ") == 1
    assert f"\n# {row.hub_id or row.name}\n" in text
    assert not re.search(r"\{\{|\{%|%\}|\bNone\b|\bnan\b|\n\n\n|[ \t]\n|—", text)
    assert "not stated*" not in text  # this text asks the owner of a converted model for an addition
    assert "Measured" not in text  # nothing of ours among the publisher's


def test_python_in_it_compiles_and_loads_the_checkpoint(row, text):
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    (loaded,) = [call.args[0].value for call in calls if ast.unparse(call.func) == "vitrail.load"]
    assert find_checkpoint(loaded) is row
    heads = re.findall(r'head="(\w+)"`', text)
    assert set(heads) == row.head_urls.keys()


def test_links_lead_to_public_places(text):
    links = re.findall(r"\]\((.*?)\)", text)
    assert {link for link in links if link.startswith("#")} == {"#sources"}
    addresses = [urlsplit(link) for link in links if not link.startswith("#")]
    assert {(address.scheme, address.netloc) for address in addresses} <= {("https", host) for host in HOSTS}
    assert all(address.path.strip("/") for address in addresses)


def test_every_paper_is_linked_and_cited(row, text):
    """The Hub makes a tag of each arXiv link."""
    for number in row.paper:
        assert f"arXiv:{number}" in text.split("## Citation")[1]
    assert f"https://arxiv.org/abs/{row.paper[0]}" in text or f"https://arxiv.org/abs/{row.paper[-1]}" in text
    assert ("zenodo.4414861" in text) == (row.family == "timm")


def test_tables_are_whole(text):
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
