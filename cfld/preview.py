"""The former name of cfld.photos."""

import sys

if __name__ == "__main__":
    print("error: python -m cfld.preview is now python -m cfld.photos", file=sys.stderr)
    sys.exit(2)
