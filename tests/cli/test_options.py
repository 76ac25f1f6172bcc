"""One vocabulary: the same option has the same type, default and help in every command."""

from collections import defaultdict

import pytest
import typer

from vitrail.cli.app import app
from vitrail.cli.options import as_options

COMMANDS = typer.main.get_command(app).commands
# Options that may differ between commands, with the reason
EXCEPTIONS = {
    ("--output", "help"): "the kind of output differs: a model, features, a picture, a page, results",
    ("--output", "default"): "similar and report have a file name that is as good as any",
    ("--output", "required"): "knn, logistic and card also print what they write",
    **{("--recipe", fact): "probe and pretrain have recipes of their own" for fact in ("help", "show_default")},
    **{("--dtype", fact): "extract: the type of the stored features" for fact in ("help", "default", "show_default")},
    **{
        ("--labels", fact): "pretrain: whether to hold out labeled images"
        for fact in ("type", "is_flag", "metavar", "default", "show_default", "help")
    },
    ("--top", "default"): "labels of one image, or images of a contact sheet",
    ("--batch-size", "help"): "export: the batch size that a graph is fixed to",
    ("--batch-size", "show_default"): "export: the batch size that a graph is fixed to",
}
READING = ("convert", "info", "embed", "classify", "attention", "pca", "extract", "similar", "probe", "knn", "logistic")
FACTS = ("opts", "type", "min", "max", "multiple", "is_flag", "metavar", "required", "default", "show_default", "help")


def options():
    """Yield (command, name of the option, option)."""
    for command, definition in COMMANDS.items():
        for parameter in definition.params:
            if parameter.param_type_name == "option":
                yield command, parameter.opts[0], parameter


def fact(parameter, name):
    if name == "type" and hasattr(parameter, "type_descriptor"):  # newer versions of typer; older ones have a click type
        return parameter.type_descriptor.annotation
    return str(getattr(parameter, name, None)) if name == "type" else getattr(parameter, name, None)


@pytest.mark.parametrize("name", FACTS)
def test_the_same_option_is_the_same_everywhere(name):
    found = defaultdict(lambda: defaultdict(list))
    for command, option, parameter in options():
        if (option, name) not in EXCEPTIONS:
            found[option][repr(fact(parameter, name))].append(command)
    assert {option: dict(values) for option, values in found.items() if len(values) > 1} == {}


def test_every_command_reads_a_checkpoint_with_the_same_options():
    found = {command: {option for other, option, _ in options() if other == command} for command in COMMANDS}
    reading = {"--head", "--head-name", "--depth-range", "--branch", "--format", "--num-heads", "--preset", "--revision"}
    assert [command for command in READING if not reading <= found[command]] == []


def test_help_has_a_short_name():
    for context in (typer.main.get_command(app), *COMMANDS.values()):
        assert "-h" in context.context_settings["help_option_names"]


def test_every_exception_is_needed():
    for option, name in EXCEPTIONS:
        assert len({repr(fact(parameter, name)) for _, opts, parameter in options() if opts == option}) > 1, (option, name)


def test_the_same_argument_is_the_same_everywhere():
    found = defaultdict(set)
    for definition in COMMANDS.values():
        for parameter in definition.params:
            if parameter.param_type_name == "argument":
                text = None if parameter.name == "output" else parameter.help  # the kind of output differs
                found[parameter.name].add((str(fact(parameter, "type")), text))
    assert {name: facts for name, facts in found.items() if len(facts) > 1} == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_parameter_has_help(command):
    texts = [COMMANDS[command].help, *(parameter.help for parameter in COMMANDS[command].params)]
    assert all(text and text.strip().split("\n")[0].rstrip().endswith((".", ";")) for text in texts), texts


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_and_traceback(command):
    assert {"--json", "--traceback"} <= {opts for name, opts, _ in options() if name == command}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('for a timm file, pass format="timm"', "for a timm file, pass --format timm"),
        ("write image_size=(28, 56).", "write --image-size 28x56."),
        ("set classifier=False.", "set --no-classifier."),
        ("set depth_range=(0.001, 80)", "set --depth-range 0.001,80 of `vitrail convert`"),
        ("Set num_heads=.", "Set --num-heads of `vitrail convert`."),
        (
            'preset="sat" is assumed; set labels= to',
            "--preset sat of `vitrail convert` is assumed; set --labels of `vitrail convert` to",
        ),
        ("found format='x'; image_size=True is", "found --format x; --image-size is"),
        ("num_attention_heads=5 does not divide", "num_attention_heads=5 does not divide"),
        ("https://host/x?format=y is", "https://host/x?format=y is"),
    ],
)
def test_messages_name_options_as_the_command_line_spells_them(message, expected):
    assert as_options(message, ("format", "image_size", "classifier")) == expected
