"""What somebody at a terminal sees while waiting, on standard error. Logs and pipes get nothing of it."""

import sys

PATIENCE = 3.0  # seconds after which work shows a bar that nobody has asked for


def terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def tell(what: str) -> None:
    """Say on a terminal what begins."""
    if terminal():
        print(what, file=sys.stderr, flush=True)
