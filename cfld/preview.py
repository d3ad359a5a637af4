"""The former name of cfld.photos."""

import sys

if __name__ == "__main__":
    sys.exit("error: python -m cfld.preview is now python -m cfld.photos")
