"""Shared by all commands: one-line errors, parsers, devices."""

import argparse
import difflib
import functools
import io
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch

from cfld.tools.reasons import memory_asked, reason

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISION_HELP = "of the weights (default: bf16 where hardware multiplies it, else fp32)"
DEVICE_HELP = "cuda, cpu, ... (default: the best available)"


class UserError(ValueError):
    """A mistake that the user can fix. Its text says what must hold, what was found and how to fix it, in one line."""


class WriteError(UserError):
    """Something that could not be written: the disk is full, or the folder is not the user's."""


def command(main: Callable[..., None]) -> Callable[..., int]:
    """Make main(argv) a command, which returns its exit code.

    A UserError, an error of the operating system, a lack of memory or of a compiler becomes one line on standard error
    and exit code 2, Ctrl-C exit code 130. Any other error is a bug and keeps its traceback. What the console's encoding
    lacks is printed as its code.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of large photos and odd tags, which are read all the same
        try:
            main(argv)
            return 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except UnicodeEncodeError as error:
            text = f"file names must be UTF-8, found {error.object[-80:]!r}: rename the file"
        except UserError as error:
            text = str(error)
        except OSError as error:
            if error.errno is None:  # not of the system, but of a library: a reader should have caught it
                raise
            text = f"{error.filename or 'a file or connection'} cannot be used: {reason(error)}"
        except (MemoryError, RuntimeError) as error:
            if is_lack_of_memory(error):
                text = (
                    f"not enough memory{memory_asked(error)}: use a smaller --batch or fewer images, and in training "
                    "--accumulate and --activation-checkpointing all"
                )
            elif is_of_compiler(error):
                text = (
                    f"--compile needs a compiler that torch can use, such as g++, found none that compiles this model "
                    f"({type(error).__name__}): install one, or leave --compile out"
                )
            else:
                raise
        print("error: " + " ".join(text.split()), file=sys.stderr)
        return 2

    return run


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that the machine or the GPU has no more memory. (PyTorch's allocator on the CPU raises a
    plain RuntimeError, which only its text tells from others.)"""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def require_compiler(device: torch.device) -> None:
    """Raise an error that is_of_compiler knows, before the minutes of work that lead to it, if torch.compile needs a
    compiler of C++ for a device and finds none."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # here, since it takes a second to import

        get_cpp_compiler()


def is_of_compiler(error: Exception) -> bool:
    """Whether an error is one of torch.compile. (To import its classes takes seconds.)"""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


USAGE_OPTIONS = 12  # the most options that a usage shows


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a description, and shows the defaults that mean something. The usage of a command of
    many options shows those that must be given."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        actions = list(actions)
        if len(actions) > USAGE_OPTIONS:
            actions = [action for action in actions if action.required]
            actions.append(argparse.Action([], "options", metavar="[options]"))
        super().add_usage(usage, actions, groups, prefix)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default in ("", ()):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError for what it cannot parse: one line without the usage, which names the option and
    the nearest one there is. Options are written out: an abbreviation might mean another option tomorrow."""

    def __init__(self, *names: Any, **settings: Any):
        kept: dict[str, Any] = {"formatter_class": HelpFormatter, "allow_abbrev": False}
        super().__init__(*names, **kept | settings)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but an unknown option is said before what is missing, which it may stand for."""
        words = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        for word in words:
            name = word.partition("=")[0]
            if word == "--" or (self.commands() and not word.startswith("-")):
                break  # what follows is no option, or another parser's
            if re.fullmatch(r"--?[a-zA-Z][\w-]*", name) and name not in known and not is_written_number(word):
                raise UserError(f"unknown option {name}{nearest('--' + name.lstrip('-'), known) or self.advice()}")
        return super().parse_known_args(words, namespace)

    def commands(self) -> list[str]:
        """The commands that have parsers of their own."""
        return [name for a in self._actions if isinstance(a, argparse._SubParsersAction) for name in a.choices]

    def advice(self) -> str:
        return f": {self.prog} --help lists them"

    def error(self, message: str) -> NoReturn:
        raise UserError(self.in_our_words(message))

    def in_our_words(self, message: str) -> str:
        """What argparse says of a mistake -> what must hold, and what was found."""
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            names = found[1].split(", ")
            if commands := self.commands():
                return f"a command must be given: {in_words(commands, 'or')}"
            return f"{in_words(names)} must be given{self.advice()}"
        if found := re.fullmatch(r"one of the arguments (.*) is required", message):
            return f"one of {in_words(found[1].split())} must be given{self.advice()}"
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
            return f"{found[1][:80]!r} belongs to no option: write it behind one{self.advice()}"
        found = re.fullmatch(r"argument ([^:]+): (.*)", message, re.DOTALL)
        if found is None:
            return message
        name, fault = found[1].replace("/", " or "), found[2]
        if chosen := re.match(r"invalid choice: '?(.*?)'?(?:, maybe.*)? \(choose from (.*)\)", fault):
            choices = [choice.strip("' ") for choice in chosen[2].split(",")]
            if self.commands():
                return unknown_command(chosen[1], choices)
            return f"{name} must be {in_words(choices, 'or')}, found {chosen[1]!r}{nearest(chosen[1], choices)}"
        if typed := re.fullmatch(r"invalid (\w+) value: (.*)", fault):
            kind = {"int": "a whole number", "float": "a number"}.get(typed[1], f"a {typed[1]}")
            return f"{name} must be {kind}, found {typed[2][:80]}"
        if counted := re.fullmatch(r"expected (?:at least )?(one|\d+) arguments?", fault):
            return f"{name} must be followed by {'a value' if counted[1] == 'one' else counted[1] + ' values'}"
        if other := re.fullmatch(r"not allowed with argument (.*)", fault):
            return f"{name} must be given without {other[1]}: leave one of them out"
        if extra := re.fullmatch(r"ignored explicit argument (.*)", fault):
            return f"{name} takes no value, found {extra[1]}"
        return f"{name} {fault}"


def is_written_number(word: str) -> bool:
    """Whether a word is a number, such as -inf."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def in_words(names: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def nearest(word: str, known: Iterable[str]) -> str:
    """A question for the name that was probably meant: the only one that begins so, or the most similar; nothing if
    there is none."""
    known = list(known)
    begun = [name for name in known if name.startswith(word)]
    found = begun if len(begun) == 1 else difflib.get_close_matches(word, known, 1)
    return f"; did you mean {found[0]}?" if found else ""


def unknown_command(name: str, commands: Sequence[str]) -> str:
    """What to say of a command that is none of these."""
    return f"unknown command {name!r}{nearest(name, commands) or ': choose ' + in_words(commands, 'or')}"


def command_parser(module: str, doc: str | None) -> Parser:
    """A parser for python -m module. Its description is the module's docstring without the legend of shapes."""
    return Parser(f"python -m {module}", description=(doc or "").partition("\nLetters in shapes")[0])


def parse_size(text: str) -> tuple[int, int]:
    """ "256x176" -> (256, 176), as a type for argparse."""
    try:
        first, second = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two whole numbers such as 256x176, found {text!r}") from None
    if not (0 < first <= 8192 and 0 < second <= 8192):
        raise argparse.ArgumentTypeError(f"must have sides within 1 .. 8192, found {text!r}")
    return first, second


def parse_seed(text: str) -> int:
    """A seed that every generator takes, as a type for argparse."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0 and below 2^63, found {text!r}")
    return int(text)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware: CUDA; of CPUs those with AMX, AVX-512 BF16 or Arm's BF16."""
    if device.type != "cpu":
        return device.type == "cuda"
    if platform.machine().lower() in ("aarch64", "arm64"):
        return sys.platform == "linux" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def pick_precision(name: str | None, device: torch.device) -> torch.dtype:
    """The named precision; None: bf16 where hardware multiplies it, which a line on standard error says of CPUs, else
    fp32."""
    if name is None:
        name = "bf16" if multiplies_bf16(device) else "fp32"
        if name == "bf16" and device.type == "cpu":
            print("bf16, which this CPU multiplies in hardware; --precision fp32 is exact", file=sys.stderr)
    return PRECISIONS[name]


def devices() -> list[str]:
    """The kinds of devices on which torch computes here, the best first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, available in there.items() if available]


def pick_device(name: str | None, option: str = "--device") -> torch.device:
    """The named device; None: CUDA, else MPS, else the CPU. Raises UserError, which names the option, if tensors cannot
    be computed there."""
    name = devices()[0] if name is None else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        found = in_words(devices()) + (f" ({torch.cuda.device_count()} GPUs)" if torch.cuda.is_available() else "")
        raise UserError(f"{option} {name} cannot be used here, where torch has {found}: choose another") from None
    return device
