"""Shared by all commands: one-line errors, parsers, devices."""

import argparse
import functools
import io
import platform
import sys
from collections.abc import Callable

import torch

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
        try:
            main(argv)
            return 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except UnicodeEncodeError as error:
            text = f"file names must be UTF-8, found {error.object[-80:]!r}: rename the file"
        except (UserError, OSError) as error:
            text = str(error)
        except (MemoryError, RuntimeError) as error:
            if is_lack_of_memory(error):
                text = (
                    f"not enough memory ({str(error)[:200]}): use a smaller --batch or fewer images, and in training "
                    "--accumulate and --activation-checkpointing all"
                )
            elif is_of_compiler(error):
                text = (
                    f"--compile needs a compiler that torch can use, such as g++ ({str(error)[:200]}): install one, "
                    "or leave --compile out"
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


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a description, and shows the defaults that mean something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default in ("", ()):
            return action.help
        return super()._get_help_string(action)


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for python -m module. Its description is the module's docstring without the legend of shapes."""
    description = (doc or "").partition("\nLetters in shapes")[0]
    return argparse.ArgumentParser(f"python -m {module}", description=description, formatter_class=HelpFormatter)


def parse_size(text: str) -> tuple[int, int]:
    """ "256x176" -> (256, 176), as a type for argparse."""
    try:
        first, second = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two whole numbers such as 256x176, found {text!r}") from None
    if not (0 < first <= 8192 and 0 < second <= 8192):
        raise argparse.ArgumentTypeError(f"each side must be within 1 .. 8192, found {text!r}")
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


def pick_device(name: str | None, option: str = "--device") -> torch.device:
    """The named device; None: CUDA, else MPS, else the CPU. Raises UserError, which names the option, if tensors cannot
    be computed there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{option} {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
