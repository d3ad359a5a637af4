"""How far the project is from the authors' own code, as a Markdown table: python tests/official/report.py"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from test_official import report  # noqa: E402

if __name__ == "__main__":
    print(report())
