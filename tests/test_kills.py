"""kills"""

import subprocess
import sys
from pathlib import Path

import pytest

from runs import ONE_THREAD

KILLS = [sys.executable, Path(__file__).parents[1] / "benchmarks" / "kills.py", "--kills"]


def test_a_training_that_is_killed_thrice_ends_bit_for_bit_as_one_that_was_not() -> None:
    done = subprocess.run([*KILLS, "3", "--steps", "3"], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 kills") == 2 and done.stdout.count("0 damaged") == 2


@pytest.mark.slow
def test_a_training_that_is_killed_200_times_ends_bit_for_bit_as_one_that_was_not() -> None:
    done = subprocess.run([*KILLS, "200"], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
