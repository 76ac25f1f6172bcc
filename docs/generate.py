"""Writes the generated parts of README.md and docs/: `python docs/generate.py` (part of `make docs`).

A generated part stands between `<!-- generated: NAME -->` and `<!-- end of generated -->`. README's and the quickstart's blocks
are run on the checkpoint in examples/digits, and their output is inserted. A test fails when a part is stale.
"""

import contextlib
import functools
import inspect
import io
import json
import os
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

import vitrail
import vitrail.errors
from vitrail.cli.app import app
from vitrail.convert.export import to_format
from vitrail.convert.families.registry import EXPORT_FORMATS
from vitrail.convert.sources.catalog import official_config
from vitrail.model_cards.lineages import FAMILY_CARDS, lineage_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN = [ROOT / "README.md", DOCS / "quickstart.md"]  # pages that show the output of their blocks
TABLES = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))

# Groups of checkpoints whose row says more than `group_row` can: classifier, formats it exports to, source of its reference outputs
GROUPS = {
    "DINO": ('separate file: `head="linear"`', "dino, timm, transformers", "original"),
    "DINOv2": ('separate files: `head="linear_1layer"`, `"linear_4layer"`', "dinov2, timm, transformers", "original"),
    "DINOv3": ('ViT-7B: separate file, `head="linear"`', "dinov3; timm and transformers, which compute the periods", "original"),
    "Google, augreg and fine-tuned": ("in the file", "google, timm, transformers", "original"),
    "Google, ImageNet-21k with pre_logits": (
        "in the file; dropped if all zero",
        "google; transformers without classifier",
        "original",
    ),
    "MAE": ("in fine-tuned files", "timm, transformers; pretrained: dino", "timm"),
    "DeiT, DeiT III": ("in the file", "timm; DeiT: transformers", "timm"),
    "I-JEPA": ("none", "timm", "timm"),
    "timm, plain": ("in the file", "timm, transformers, dino", "timm"),
    "timm, without [CLS] or with its own variants": ("in the file", "timm", "timm"),
    "timm, trained with texts": ("none", "timm", "timm"),
    "timm, DINOv2": ("none", "timm, transformers", "original, in its own format"),
    "timm, DINOv3, EUPE and LingBot-Vision": ("none", "timm, transformers, dinov3", "timm"),
    "timm, relative positions": ("in the file", "timm", "timm"),
    "transformers, vit": ("in the file", "transformers", "transformers"),
    "transformers, dinov2": ("in the file ([CLS] and mean patch)", "transformers, dinov2; timm without classifier", "transformers"),
    "transformers, dinov2_with_registers": (
        "in the file ([CLS] and mean patch)",
        "transformers, dinov2; timm without classifier",
        "transformers",
    ),
    "transformers, dinov3_vit": ("none", "transformers, dinov3; timm, which pools the mean", "transformers"),
}
CHECKPOINT_COLUMNS = "| name | parameters | image | patch | trained on | published ImageNet-1k accuracy, % |"
METRICS = {"imagenet_top1": "top-1", "imagenet_linear_top1": "linear", "imagenet_knn_top1": "k-NN"}


# Checkpoints ----------------------------------------------------------------------------------------------------------


def group_of(checkpoint: Any) -> str:
    """Return the group in which the documentation lists a checkpoint."""
    architecture = checkpoint.architecture
    if checkpoint.family == "timm":
        if architecture["position"] == "rotary":
            return "timm, DINOv3, EUPE and LingBot-Vision"
        if architecture["position"] != "absolute":
            return "timm, relative positions"
        if "dinov2" in checkpoint.name:
            return "timm, DINOv2"
        if lineage_of(checkpoint).learns_from == "texts":
            return "timm, trained with texts"
        is_plain = architecture["pooling"] == "cls" and architecture.get("class_position", True) and not architecture["layer_scale"]
        return "timm, plain" if is_plain else "timm, without [CLS] or with its own variants"
    if checkpoint.family == "transformers":
        return f"transformers, {architecture['model_type']}"
    if checkpoint.family == "google":
        return "Google, ImageNet-21k with pre_logits" if architecture["pre_logits"] else "Google, augreg and fine-tuned"
    names = {"dino": "DINO", "dinov2": "DINOv2", "dinov3": "DINOv3", "mae": "MAE", "deit": "DeiT, DeiT III", "ijepa": "I-JEPA"}
    return names.get(checkpoint.family, checkpoint.family)


def grouped() -> dict[str, list[Any]]:
    """Return the official checkpoints by group."""
    groups: dict[str, list[Any]] = {name: [] for name in GROUPS}
    for checkpoint in vitrail.list_checkpoints():
        groups.setdefault(group_of(checkpoint), []).append(checkpoint)
    return groups


def group_row(name: str, rows: list[Any]) -> tuple[str, str, str]:
    """Return what the table of families says about a group, from the catalog where GROUPS has no words for it."""
    if name in GROUPS:
        return GROUPS[name]
    heads = sorted({head for row in rows for head in row.head_urls})
    in_file = "in the file" if any(row.has_classifier for row in rows) else "none"
    return f"separate files: {', '.join(heads)}" if heads else in_file, rows[0].family, "original"


def families() -> str:
    """Return the table of families."""
    lines = ["| family | checkpoints | classifier | exports to | reference outputs from |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {len(rows)} | {' | '.join(group_row(name, rows))} |" for name, rows in grouped().items()]
    return "\n".join(lines) + "\n"


def checkpoints() -> str:
    """Return a table of the checkpoints of each group."""
    parts = []
    for name, rows in grouped().items():
        parts += [f"### {name}\n", CHECKPOINT_COLUMNS, "|---|---|---|---|---|---|"]
        for row in rows:
            accuracy = ", ".join(f"{title} {row.metrics[key]}" for key, title in METRICS.items() if row.metrics[key] is not None)
            a = row.architecture
            parts.append(
                f"| `{row.hub_id or row.name}` | {row.params / 1e6:.1f} M | {a['image_size']} | {a['patch']} "
                f"| {', then '.join(row.training_data)} | {accuracy} |"
            )
        parts.append("")
    return "\n".join(parts)


def formats() -> str:
    """Return the table of what is read and written of each family and lineage; the exporter itself says what it can write."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for checkpoint in vitrail.list_checkpoints():
        groups.setdefault((checkpoint.family, lineage_of(checkpoint).name), []).append(checkpoint)
    lines = ["| family | training | reads | exports to | reference outputs | checkpoints |", "|---|---|---|---|---|---|"]
    for (family, lineage), rows in groups.items():
        card = FAMILY_CARDS[family]
        exports = dict.fromkeys(name for row in rows for name in exports_of(*reduced(row)))
        lines.append(
            f"| {family} | {lineage} | {card.files} | {', '.join(exports)} | {card.reference}: {card.cases} | {len(rows)} |"
        )
    return "\n".join([*lines, f"| | | | | all | {len(vitrail.list_checkpoints())} |"]) + "\n"


def reduced(checkpoint: Any) -> tuple[str, bool]:
    """Return the config of a checkpoint with other sizes, as JSON, and whether it classifies."""
    config = official_config(checkpoint)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "num_labels": 2}
    sizes |= {"patch_size": 2, "image_size": 4, "relative_position_hidden_size": 8}
    sizes |= {"representation_size": 8 if config.representation_size else None}
    fields = {name: getattr(config, name) for name in vitrail.ViTConfig.__annotations__ if not name.startswith("_")}
    return json.dumps(fields | sizes), checkpoint.has_classifier


@functools.cache
def exports_of(config: str, classifies: bool) -> tuple[str, ...]:
    """Return the formats to which a model exports."""
    kind = vitrail.ViTForImageClassification if classifies else vitrail.ViTModel
    model, found = kind(vitrail.ViTConfig(**json.loads(config))), []
    for name in EXPORT_FORMATS:
        with contextlib.suppress(vitrail.errors.UnsupportedCheckpointError):
            to_format(model, vitrail.VitrailImageProcessor(), name)
            found.append(name)
    return tuple(found)


# API ------------------------------------------------------------------------------------------------------------------


def public_groups() -> Iterator[tuple[str, list[str]]]:
    """Yield the groups of vitrail.PUBLIC_NAMES, as the comments in its source name them."""
    source = (ROOT / "__init__.py").read_text(encoding="utf-8").partition("PUBLIC_NAMES = {\n")[2].partition("\n}\n")[0]
    for part in source.split("    # ")[1:]:
        title, *lines = part.splitlines()
        yield title[0].upper() + title[1:], re.findall(r'^\s*"(\w+)":', "\n".join(lines), flags=re.MULTILINE)


def plain(text: str) -> str:
    """Return a signature without the modules of its types."""
    text = re.sub(r"\b(?:[a-z_]\w*\.|PIL\.(?:Image\.)?)+(?=[A-Za-z_])", "", text).replace("'", '"')
    return re.sub(r"\*<class \"?(\w+)\"?>", r"\1", text)


def signature(name: str, function: Callable[..., Any]) -> str:
    """Return a signature without the modules of its types; one parameter per line where it is long."""
    found = inspect.signature(function)
    parameters = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    text = plain(str(found.replace(parameters=parameters))).removesuffix(" -> None")
    if len(name + text) > 100:
        inside = [plain(str(parameter)) for parameter in parameters]
        if any(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters):
            first = next(i for i, parameter in enumerate(parameters) if parameter.kind is parameter.KEYWORD_ONLY)
            inside.insert(first, "*")
        result = text[text.rindex(") -> ") + 1 :] if ") -> " in text else ""
        text = "(\n" + "".join(f"    {parameter},\n" for parameter in inside) + ")" + result
    return f"```py\n{name}{text}\n```\n"


FIELD = re.compile(r"(?:    )?((?:[a-z_]\w*)(?:, [a-z_]\w*)*|[A-Z]\w*Error)( \([^)]*\))?(?:: (?=\S)|$)")


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: its sections and fields as lists, its examples as code."""
    lines: list[str] = []
    section = fenced = False
    for line in inspect.cleandoc(docstring).splitlines():
        inside = line.startswith("    ")
        field = FIELD.match(line)
        if fenced and line and not inside:
            while not lines[-1]:
                lines.pop()
            lines += ["```", ""]
            fenced = False
        if re.fullmatch(r"[A-Z][^.:]*:", line):
            section = True
            lines += ["", f"**{line[:-1]}**", ""]
        elif field and (line[field.end() :] or field[2]) and (section or not inside):
            lines.append(f"- `{field[1]}`{field[2] or ''}: {line[field.end() :]}".removesuffix(": "))
        elif inside and not section and not (lines and lines[-1].startswith(("- ", "  "))):
            lines += [] if fenced else ["", "```py"]
            fenced = True
            lines.append(line[4:])
        elif inside:
            lines.append(("  " if lines and lines[-1].startswith(("- ", "  ")) else "") + line.strip())
        else:
            section = section and not line
            lines.append(line)
    if fenced:
        lines.append("```")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
    return re.sub(
        r"vitrail(?:\.\w+)+\.(\w+)", lambda found: f"vitrail.{found[1]}" if found[1] in vitrail.PUBLIC_NAMES else found[0], text
    )


def members(name: str, kind: type) -> Iterator[str]:
    """Yield the documented methods and properties that a public class defines, in vitrail itself."""
    for base in kind.__mro__:
        if not base.__module__.startswith("vitrail"):
            continue
        for member, value in vars(base).items():
            if member.startswith("_") or member == "forward" or getattr(kind, member) is not getattr(base, member):
                continue
            if isinstance(value, property) and value.__doc__:
                yield f"#### `{name}.{member}`\n\n{prose(value.__doc__)}"
            elif inspect.isfunction(value) and value.__doc__ and value.__module__.startswith("vitrail"):
                yield f"#### `{name}.{member}`\n\n{signature(member, value)}\n{prose(value.__doc__)}"


def api() -> str:
    """Return the reference of every public name, from its docstring."""
    parts = []
    for title, names in public_groups():
        parts.append(f"## {title}\n")
        for name in names:
            value = getattr(vitrail, name)
            parts.append(f"### `vitrail.{name}`\n")
            if isinstance(value, type) and issubclass(value, Exception):
                parts.append(prose(value.__doc__ or ""))
            elif isinstance(value, type):
                shown = set(inspect.signature(value).parameters) - {"config", "inputs", "kwargs", "args"}
                if shown and len(shown) < 30:  # the configs and arguments of transformers have more than a reader can use
                    parts.append(signature(name, value))
                parts += [prose(value.__doc__ or ""), *members(name, value)]
            elif callable(value):
                parts += [signature(name, value), prose(value.__doc__ or "")]
            elif isinstance(value, dict):
                parts += [
                    "| size | " + " | ".join(next(iter(value.values()))) + " |",
                    "|---" * (1 + len(next(iter(value.values())))) + "|",
                ]
                parts += [f"| {key} | " + " | ".join(map(str, row.values())) + " |" for key, row in value.items()] + [""]
            else:
                parts.append(f"A constant, `{type(value).__name__}`.\n")
    return "\n".join(parts)


def errors() -> str:
    """Return the table of exceptions."""
    kinds = [kind for kind in vars(vitrail.errors).values() if isinstance(kind, type) and issubclass(kind, vitrail.VitrailError)]
    lines = ["| exception | raised when |", "|---|---|"]
    lines += [f"| `{kind.__name__}` | {cell(inspect.cleandoc(kind.__doc__ or ''))} |" for kind in kinds]
    return "\n".join(lines) + "\n"


# Command line ---------------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Return the commands of the program `vitrail`, by name."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def cell(text: str) -> str:
    """Return a text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def cli() -> str:
    """Return the reference of every command: its arguments and options as `--help` shows them."""
    parts = []
    for name, command in sorted(commands().items()):
        context = command.context_class(command, info_name=f"vitrail {name}")
        parts += [f"## vitrail {name}\n", f"{inspect.cleandoc(command.help or '')}\n"]
        parts += ["| argument or option | meaning |", "|---|---|"]
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None and parameter.name != "help":
                parts.append(f"| `{cell(record[0])}` | {cell(record[1]).replace('<', '&lt;')} |")
        parts.append("")
    return "\n".join(parts)


# Pages ----------------------------------------------------------------------------------------------------------------

GENERATED: dict[str, Callable[[], str]] = {
    "families": families,
    "checkpoints": checkpoints,
    "formats": formats,
    "api": api,
    "cli": cli,
    "errors": errors,
    "benchmarks": TABLES["section"],
    "speed": TABLES["speed"],
}


def generate(page: str) -> str:
    """Return a page with its generated parts renewed."""

    def renew(found: re.Match[str]) -> str:
        return f"<!-- generated: {found[1]} -->\n{GENERATED[found[1]]()}<!-- end of generated -->"

    return re.sub(r"<!-- generated: (\w+) -->\n.*?<!-- end of generated -->", renew, page, flags=re.DOTALL)


BLOCK = re.compile(r"^```(python|console)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)


@contextlib.contextmanager
def folder_of_the_reader() -> Iterator[None]:
    """Work in a new folder that holds what the pages name: examples/ and photo.jpg; tables are 100 columns wide."""
    before, width = Path.cwd(), os.environ.get("COLUMNS")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(ROOT / "examples")
        Path(folder, "photo.jpg").symlink_to(ROOT / "examples" / "chelsea.jpg")
        os.chdir(folder)
        os.environ["COLUMNS"] = "100"
        try:
            yield
        finally:
            os.chdir(before)
            os.environ.pop("COLUMNS")
            if width is not None:
                os.environ["COLUMNS"] = width


def run_command(line: str) -> str:
    """Return what a `vitrail` command prints: its messages, without progress bars, then its results."""
    program, *words = shlex.split(line)
    assert program == "vitrail", line
    output, messages = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(messages):
        app(words, standalone_mode=False)
    shown = [
        message for message in messages.getvalue().splitlines() if message.strip() and "%|" not in message and "/s]" not in message
    ]
    return "".join(f"{line.rstrip()}\n" for line in [*shown, *output.getvalue().splitlines()])


def with_outputs(pages: list[str]) -> list[str]:
    """Return pages whose blocks are followed by what they print now: console blocks, and Python blocks before a text block.

    The pages run in one folder. A command that stands on several of them runs once.
    """
    namespace: dict[str, Any] = {}
    run = functools.cache(run_command)

    def renew(found: re.Match[str]) -> str:
        language, block, text = found.groups()
        if language == "console":
            lines = [line for line in block.splitlines() if line.startswith("$ ")]
            shown = "\n".join(f"{line}\n{run(line[2:])}".rstrip() for line in lines)
            return f"```console\n{shown}\n```\n" if masked(shown) != masked(block.rstrip()) else found[0]
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(block, namespace)
        if text is None or masked(output.getvalue()) == masked(text):
            return found[0]
        return f"```python\n{block}```\n\n```text\n{output.getvalue()}```\n"

    with folder_of_the_reader():
        return [BLOCK.sub(renew, page) for page in pages]


def masked(output: str) -> str:
    """Return an output without measured numbers and versions, which differ between machines."""
    return re.sub(r"\d+(\.\d+)+(e[+-]\d+)?|\d+(?=%)", "#", output)


def main() -> None:
    """Renew all pages."""
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    renewed = {path: generate(page) for path, page in pages.items()}
    renewed |= zip(RUN, with_outputs([renewed[path] for path in RUN]), strict=True)
    for path, page in renewed.items():
        if page != pages[path]:
            path.write_text(page, encoding="utf-8")
            print(f"renewed {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
