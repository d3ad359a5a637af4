"""What --help says of every command, and the options that errors and documents name."""

import argparse
import ast
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfld import sample, train
from cfld.convert import __main__ as convert
from cfld.data import __main__ as data
from cfld.edit import __main__ as edit
from cfld.evaluate import __main__ as evaluate
from cfld.evaluate import figure, study
from cfld.people import __main__ as people
from cfld.photos import __main__ as photos
from cfld.playground import __main__ as playground
from cfld.tools import plot
from cfld.training.options import GROUPS, Request, TrainConfig

ROOT = Path(__file__).parents[1]
MAINS = {m.__name__: m.main for m in (
    sample, train, convert, data, edit, evaluate, figure, study, people, photos, playground, plot,
)}  # fmt: skip
# Of torchrun and benchmarks.
OTHERS = {
    "--help", "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--shutdown-timeout", "--at-once",
    "--base", "--compare", "--standalone", "--hidden",
}  # fmt: skip


class Parsed(BaseException):
    """Carries a command's parser out of its main."""


def with_commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from with_commands(sub)


def parsers(main: Callable) -> list[argparse.ArgumentParser]:
    """The parser of a command and those of its subcommands."""

    def parse_args(self: argparse.ArgumentParser, *arguments: object) -> None:
        raise Parsed(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        main([])
    return list(with_commands(caught.value.args[0]))


@pytest.mark.parametrize("name", MAINS)
def test_every_argument_has_a_help_text_of_one_line(name: str) -> None:
    for parser in parsers(MAINS[name]):
        assert parser.description, parser.prog
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, f"{parser.prog}: {action.dest}"
            text = parser._get_formatter()._expand_help(action)
            assert len(text) <= 80, f"{parser.prog}: {len(text)} characters: {text}"


@pytest.mark.parametrize("name", MAINS)
def test_long_help_is_in_groups_with_titles(name: str) -> None:
    for parser in parsers(MAINS[name]):
        for group in parser._action_groups:
            named = group.title not in ("options", "positional arguments")
            assert len(group._group_actions) <= (12 if named else 8), f"{parser.prog}: {group.title} is too long"
            assert group.title and len(group.title) <= 80


@pytest.mark.parametrize("name", MAINS)
def test_a_usage_is_short_and_shows_what_must_be_given(name: str) -> None:
    for parser in parsers(MAINS[name]):
        usage = parser.format_usage()
        assert usage.count("\n") <= 6, usage
        for action in parser._actions:
            if action.required and action.option_strings:
                assert f" {action.option_strings[0]} " in " ".join(usage.split()), usage


def test_every_option_of_the_training_is_in_one_group_that_says_what_it_is_for() -> None:
    names = [name for names in GROUPS.values() for name in names]
    fields = {f.name for kind in (TrainConfig, Request) for f in dataclasses.fields(kind)}
    assert len(names) == len(set(names)) and set(names) == fields
    (parser,) = parsers(train.main)
    assert [group.title for group in parser._action_groups if group._group_actions][1:] == list(GROUPS)


def test_a_default_of_zero_is_shown() -> None:
    assert "(default: 0)" in parsers(sample.main)[0].format_help().split("--seed SEED ")[1].split("--")[0]


def named_options() -> Iterator[tuple[str, str]]:
    """Each option that a string of cfld/ or a document names, and the file."""
    for path in sorted({*ROOT.glob("cfld/**/*.py")} - {ROOT / "cfld/training/options.py"}):  # it names former flags
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from (
                    (option, path.name) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*\b(?!\{)", node.value)
                )
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "weights" / "README.md"):
        for line in path.read_text().splitlines():
            if "benchmarks/" not in line:
                yield from ((option, path.name) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*\b", line))


def test_every_option_that_is_named_exists() -> None:
    known = {option for main in MAINS.values() for parser in parsers(main) for option in parser._option_string_actions}
    assert not {(option, file) for option, file in named_options() if option not in known | OTHERS}
