"""Why something failed, in words for users: the texts of other libraries name their own parts, not what to mend."""

import http.client
import json
import os
import pickle
import re
import ssl

from PIL import Image
from safetensors import SafetensorError

CUT_OFF = re.compile(r"truncated|unexpected end|EOF|end of file|IncompleteBuffer|not fully covered", re.IGNORECASE)
AMOUNT = re.compile(r"allocate (\d[\d.,]*) ?(bytes|[KMGT]?i?B)\b", re.IGNORECASE)
FOREIGN_OBJECT = re.compile(r"GLOBAL ([\w.]+)")


def reason(error: BaseException) -> str:
    """Why this error was raised, a few words that can stand in brackets; of an error of another kind, that something is
    damaged."""
    text = str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is 0x{error.object[error.start]:02x}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, Image.UnidentifiedImageError):
        return "of no known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, pickle.UnpicklingError) and (found := FOREIGN_OBJECT.search(text)):
        return f"with an object of {found[1]}, which is no tensor"
    if isinstance(error, SafetensorError) and (found := re.search(r"\(os error (\d+)\)", text)):
        return os.strerror(int(found[1]))
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return "no secure connection"
    if isinstance(error, http.client.HTTPException):
        return "the connection was cut"
    if isinstance(error, OSError) and (error.errno or error.strerror):
        return error.strerror or os.strerror(error.errno or 0)
    return "cut off" if CUT_OFF.search(text) else "damaged"


def memory_asked(error: BaseException) -> str:
    """How much memory there was not, such as " for 20.00 MiB more"; nothing if the error does not say."""
    found = AMOUNT.search(str(error))
    return f" for {found[1]} {found[2]} more" if found else ""
