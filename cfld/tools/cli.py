"""What all commands share: parsers, devices, errors of one line."""

import argparse
import functools
import re
import sys
from collections.abc import Callable

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class UserError(ValueError):
    """A mistake that the user can mend. Its text says what must hold, what was found and how to fix it, in one line."""


class WriteError(UserError):
    """What could not be written: a full disk, or a folder that is not the user's."""


def command(main: Callable[..., None]) -> Callable[..., int]:
    """Make main(argv) a command: a UserError or a full disk becomes one line on standard error and exit code 2."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            main(argv)
            return 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except UnicodeEncodeError as error:
            text = f"names of files must be UTF-8, found {error.object[-80:]!r}: rename it"
        except (UserError, OSError) as error:
            text = re.split(r"(?:User|Write)Error: ", str(error))[-1]  # a worker process's comes with its traceback
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            text = (
                f"not enough memory ({str(error)[:200]}): take less at a time, by --batch or fewer pictures, and in "
                "training by --accumulate and --checkpointing all"
            )
        print("error: " + " ".join(text.split()), file=sys.stderr)
        return 2

    return run


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that the machine or the GPU has no more memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples of a description as they are written and shows the defaults that mean something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", ()):
            return action.help
        return super()._get_help_string(action)


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for python -m module, described by the module's docstring without the letters of its shapes."""
    description = (doc or "").partition("\nLetters in shapes")[0]
    return argparse.ArgumentParser(f"python -m {module}", description=description, formatter_class=HelpFormatter)


def parse_size(text: str) -> tuple[int, int]:
    """ "256x176" -> (256, 176), for argparse."""
    try:
        first, second = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two whole numbers such as 256x176, found {text!r}") from None
    if not (0 < first <= 8192 and 0 < second <= 8192):
        raise argparse.ArgumentTypeError(f"each side must be within 1 .. 8192, found {text!r}")
    return first, second


def parse_seed(text: str) -> int:
    """A seed that every generator takes, for argparse."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0 and below 2^63, found {text!r}")
    return int(text)


def pick_device(name: str | None) -> torch.device:
    """The named device, or the best there is. Raises UserError if it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
