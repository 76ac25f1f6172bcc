"""Every `vitrail` command in README and docs/ is one that the command line accepts; nothing is run."""

import re
import shlex

import pytest

from documentation import PAGES, blocks, load_generator, page_id

COMMANDS = load_generator().commands()
OPTIONS_OF_THE_PROGRAM = {"--help", "--version"}


def vitrail_commands(page):
    """Return the words after `vitrail`, or `-m vitrail`, of each line."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    lines += [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    commands = [shlex.split(line, comments=True) for line in lines]
    return [words[words.index("vitrail") + 1 :] for words in commands if "vitrail" in words]


def parse(words):
    command = COMMANDS[words[0]]
    return command.make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_parse(page):
    for words in vitrail_commands(page):
        if words[0] not in OPTIONS_OF_THE_PROGRAM:
            parse(words)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_options_in_sentences_and_tables_exist(page):
    """An option in backticks belongs to a command of vitrail, or to another program that the sentence names."""
    known = {name for command in COMMANDS.values() for option in command.params for name in (*option.opts, *option.secondary_opts)}
    others = {"--multi_gpu", "--help", "--version"}
    text = "\n".join(
        line for line in page.read_text(encoding="utf-8").splitlines() if "main_dino.py" not in line and "eval" not in line
    )
    found = set(re.findall(r"`(--[a-z][\w-]*)", text)) - others
    assert not {option for option in found if "_" not in option} - known


def test_a_wrong_option_is_found():
    with pytest.raises(Exception, match="No such option"):
        parse(["convert", "a.pth", "b/", "--no-such-option"])


def test_every_command_is_shown():
    shown = {words[0] for page in PAGES for words in vitrail_commands(page)}
    assert set(COMMANDS) <= shown
