"""The playground: a page of this machine to try a model in. Drop a photo, drag the joints, watch the picture form.

    python -m cfld.playground                                    the bundled model
    python -m cfld.playground --model DIR --port 8000            another model, another port

The page is playground.html; it loads nothing from elsewhere. Its server is the standard library's, listens on 127.0.0.1
alone, and answers only pages of its own (check_origin). One picture is painted at a time, in the order of asking.

    GET  /                the page
    GET  /settings        what it must know of joints, poses, samplers and the model
    GET  /people/K.png    an example photo: person K of those that no training has seen
    POST /photo           the bytes of a photo -> the photo as JPEG, upright
    POST /pose            {"text", "pose_size", "person", "min_confidence"} -> {"keypoints"} (18, 2) as (y, x) in FRAME
    POST /paint           {"photo", "pose", "seeds", "steps", "sampler", "pose_scale", "appearance_scale"} -> lines of
                          JSON while it paints: {"waiting"}, {"seed", "step", "preview"}, {"seed", "picture"}, {"error"}

To hang up is to cancel. A mistake is answered with {"error"} and a status of 400 or more.

Letters in shapes: C latent channels, h their side.
"""

import argparse
import base64
import binascii
import contextlib
import io
import json
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cfld import people
from cfld.files import (
    PRECISIONS,
    UserError,
    command,
    command_parser,
    parse_size,
    pick_device,
    to_rgb,
    turned_upright,
)
from cfld.model import CFLD, load
from cfld.photo import fitted
from cfld.pose import BONE_COLOURS, BONES, FRAME, JOINT_COLOURS, JOINTS, keypoints_from
from cfld.sample import SCALE_LIMIT, check_steps, default_size, generate
from cfld.scheduler import SAMPLERS
from cfld.vae import VAE

MEGABYTE = 1 << 20
PHOTO_LIMIT = 20 * MEGABYTE
PIXEL_LIMIT = 64_000_000  # of a photo; a few kilobytes can claim to be billions
JSON_LIMIT = {"/pose": MEGABYTE, "/paint": PHOTO_LIMIT * 4 // 3 + MEGABYTE}  # base64 makes four bytes of three
SEED_LIMIT = 8  # of seeds in one request
QUEUE_LIMIT = 8  # of requests that wait
EXAMPLES = people.OWN_SEEDS - people.TRAINING_SEEDS  # persons that no training has seen

PRESETS = {  # name: archetype, view and framing of cfld.people's poses
    "standing": ("stand", "front", "full"),
    "walking": ("walk", "quarter", "full"),
    "hands on hips": ("hands on hips", "front", "full"),
    "arms up": ("arms up", "front", "knee"),
    "sitting": ("sit", "quarter", "full"),
    "from the side": ("relaxed", "side", "full"),
    "from behind": ("stand", "back", "full"),
    "upper half": ("relaxed", "front", "half"),
}
DECODING = threading.Lock()  # one photo at a time: a small file may be a large picture
DRAWING = threading.Lock()  # one person at a time


class Refused(Exception):
    """A request that is not served, and why."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


# What a visitor sends. -----------------------------------------------------------------------------------------------


def read_photo(data: bytes) -> Image.Image:
    """The bytes of a JPEG, PNG or WebP file -> the picture in RGB, upright. Raises UserError."""
    if not data:
        raise UserError("the photo must be a JPEG, PNG or WebP picture, found an empty file")
    try:
        with DECODING, Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
            if width * height <= PIXEL_LIMIT:
                return to_rgb(turned_upright(image))
    except Image.DecompressionBombError:
        raise UserError(f"the photo must have at most {PIXEL_LIMIT:,} pixels, found more: make it smaller") from None
    except Image.UnidentifiedImageError:
        raise UserError("the photo must be a JPEG, PNG or WebP picture, found something else") from None
    except Exception as error:  # pillow raises whatever a damaged file leads it to
        raise UserError(f"the photo is damaged ({error}): save or copy it again") from None
    raise UserError(f"the photo must have at most {PIXEL_LIMIT:,} pixels, found {width} x {height}: make it smaller")


def parse(text: str | bytes) -> Any:
    """JSON -> its value. Raises UserError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"must be JSON ({error})") from None


def fields(content: Any, *names: str) -> list[Any]:
    """The values of an object's fields. Raises UserError unless it has just these."""
    if not isinstance(content, dict) or set(content) != set(names):
        raise UserError(f"a request must be an object of {', '.join(names)}, found {str(content)[:60]}")
    return [content[name] for name in names]


def read_pose(body: bytes) -> np.ndarray:
    """The body of POST /pose -> keypoints (18, 2). Raises UserError."""
    text, size, person, sure = fields(parse(body), "text", "pose_size", "person", "min_confidence")
    if not (isinstance(text, str) and isinstance(size, str) and type(person) is int and type(sure) in (int, float)):
        raise UserError("text and pose_size must be strings, person a whole number and min_confidence a number")
    try:
        width_height = parse_size(size) if size.strip() else None
    except argparse.ArgumentTypeError as error:
        raise UserError(f"pose-size {error}") from None
    return keypoints_from(parse(text), width_height and width_height[::-1], person, sure)


@dataclass(frozen=True)
class Order:
    """What POST /paint asks for: a picture a seed."""

    photo: Image.Image
    keypoints: np.ndarray
    seeds: list[int]
    steps: int
    sampler: str
    pose_scale: float
    appearance_scale: float


def read_order(body: bytes, model: CFLD) -> Order:
    """The body of POST /paint, checked. Raises UserError."""
    photo, pose, seeds, steps, sampler, *scales = fields(
        parse(body), "photo", "pose", "seeds", "steps", "sampler", "pose_scale", "appearance_scale"
    )
    if not isinstance(seeds, list) or not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"seeds must be whole numbers of at least 0 and below 2^63, found {str(seeds)[:60]}")
    if not 1 <= len(seeds) <= SEED_LIMIT:
        raise UserError(f"the number of seeds must be within 1 .. {SEED_LIMIT}, found {len(seeds)}")
    if type(steps) is not int:
        raise UserError(f"steps must be a whole number, found {str(steps)[:60]}")
    check_steps("steps", steps, model.config)
    if sampler not in list(SAMPLERS):
        raise UserError(f"the sampler must be one of {', '.join(SAMPLERS)}, found {str(sampler)[:60]}")
    if not all(type(scale) in (int, float) and abs(scale) <= SCALE_LIMIT for scale in scales):
        limits, found = f"-{SCALE_LIMIT} .. {SCALE_LIMIT}", str(scales)[:60]
        raise UserError(f"pose_scale and appearance_scale must be numbers within {limits}, found {found}")
    try:
        data = base64.b64decode(photo, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise UserError("the photo must be in base64") from None
    return Order(fitted(read_photo(data)), keypoints_from(pose), seeds, steps, sampler, *scales)


# What it gets back. --------------------------------------------------------------------------------------------------


def encode(picture: Image.Image, kind: str) -> bytes:
    """A picture as the bytes of a file of this kind."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def data_url(picture: Image.Image, kind: str) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(encode(picture, kind)).decode()}"


@torch.no_grad()
def preview(vae: VAE, latents: Tensor) -> Image.Image:
    """latents (1, C, h, h) -> a small square picture, decoded at half of their side or less: of SD 1.5's it takes a
    tenth of the work of a sampling step, where the whole would take more than the step."""
    side = min(latents.shape[-1] // 2, 16)
    image = vae.decode(F.interpolate(latents, size=side, mode="area").to(next(vae.parameters()).dtype))[0]
    pixels = ((image.float() / 2 + 0.5).clamp(0, 1) * 255).byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def preset_poses() -> dict[str, list[list[float]]]:
    """Keypoints (18, 2) by name, from people drawn in these poses: what is hidden there is missing."""
    person = people.identity(0)
    poses = {}
    for name, (archetype, view, framing) in PRESETS.items():
        pose = people.sample_pose(np.random.default_rng(0), archetype, view, framing)
        poses[name] = people.render(person, pose, supersample=1).keypoints.round(1).tolist()
    return poses


def settings(model: CFLD) -> dict[str, Any]:
    """What GET /settings tells the page."""
    height, width = default_size(model.config.image_size)
    return {
        "joints": JOINTS,
        "joint_colours": JOINT_COLOURS,
        "bones": BONES,
        "bone_colours": BONE_COLOURS,
        "frame": FRAME,
        "presets": preset_poses(),
        "samplers": list(SAMPLERS),
        "seed_limit": SEED_LIMIT,
        "model": f"{model.config.image_size} x {model.config.image_size} inside, pictures of {width} x {height}",
    }


# The server. ---------------------------------------------------------------------------------------------------------


class Turns:
    """One at a time, in the order of asking."""

    def __init__(self) -> None:
        self.queue: deque[object] = deque()
        self.moved = threading.Condition()

    def place(self, ticket: object) -> int:
        """How many are before."""
        with self.moved:
            return self.queue.index(ticket)

    @contextlib.contextmanager
    def take(self, waiting: Callable[[int], None]) -> Iterator[None]:
        """Wait for one's turn, telling every second how many are before; what waiting() raises gives the place up.
        Raises Refused if too many wait already."""
        ticket = object()
        with self.moved:
            if len(self.queue) > QUEUE_LIMIT:
                raise Refused(503, f"{QUEUE_LIMIT} others are waiting already: try again later")
            self.queue.append(ticket)
        try:
            while before := self.place(ticket):
                waiting(before)
                with self.moved:
                    self.moved.wait(timeout=1)
            yield
        finally:
            with self.moved:
                self.queue.remove(ticket)
                self.moved.notify_all()


class PlaygroundServer(ThreadingHTTPServer):
    """The playground of a model at a port of 127.0.0.1; port 0: any that is free."""

    daemon_threads = True

    def __init__(self, model: CFLD, vae: VAE, port: int = 0):
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error}): choose another --port, 0 for any") from None
        self.model, self.vae, self.turns, self.settings = model, vae, Turns(), settings(model)
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PlaygroundServer
    timeout = 60  # seconds for a silent visitor

    def do_GET(self) -> None:
        self.serve({"/": self.get_page, "/settings": self.get_settings}, self.get_person)

    def do_POST(self) -> None:
        self.serve({"/photo": self.post_photo, "/pose": self.post_pose, "/paint": self.post_paint}, self.get_nothing)

    def serve(self, routes: dict[str, Callable[[], None]], otherwise: Callable[[], None]) -> None:
        """Answer by the path, and mistakes with their reason."""
        try:
            self.check_origin()
            routes.get(self.path, otherwise)()
        except Refused as refused:
            self.answer_json({"error": str(refused)}, refused.status)
        except UserError as error:
            self.answer_json({"error": str(error).replace("--", "")}, 400)  # fields of the page, not options
        except (ConnectionError, TimeoutError):
            pass  # the visitor has left

    def check_origin(self) -> None:
        """Refuse what another site asks for through the visitor's browser: its Origin is foreign, or the browser says
        that it asks across sites (as for a picture in a page), or, where its own name was made to lead here (DNS
        rebinding), the Host is."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host not in self.server.hosts:
            raise Refused(403, f"the host must be {' or '.join(self.server.hosts)}, found {host}")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise Refused(403, f"the origin must be this page itself, found {origin}")
        followed = self.path == "/" and self.headers.get("Sec-Fetch-Mode") == "navigate"  # a link that leads here
        if (site := self.headers.get("Sec-Fetch-Site", "none")) not in ("none", "same-origin") and not followed:
            raise Refused(403, f"the origin must be this page itself, found a {site} one")

    def get_page(self) -> None:
        self.answer((resources.files("cfld") / "playground.html").read_bytes(), "text/html; charset=utf-8")

    def get_settings(self) -> None:
        self.answer_json(self.server.settings)

    def get_person(self) -> None:
        number = re.fullmatch(r"/people/(\d{1,9})\.png", self.path, re.ASCII)
        if number is None:
            self.get_nothing()
        else:
            seed = people.TRAINING_SEEDS + int(number[1]) % EXAMPLES
            with DRAWING:
                picture = Image.fromarray(people.draw(seed, 0, limit=people.OWN_SEEDS).image)
            self.answer(encode(picture, "png"), "image/png")

    def get_nothing(self) -> None:
        raise Refused(404, f"{self.path[:60]} is not served here")

    def post_photo(self) -> None:
        photo = fitted(read_photo(self.body(PHOTO_LIMIT)))
        photo.thumbnail((1024, 1024))
        self.answer(encode(photo, "jpeg"), "image/jpeg")

    def post_pose(self) -> None:
        self.answer_json({"keypoints": read_pose(self.body(JSON_LIMIT["/pose"])).tolist()})

    def post_paint(self) -> None:
        order = read_order(self.body(JSON_LIMIT["/paint"]), self.server.model)
        with self.server.turns.take(lambda before: self.say(waiting=before)):
            self.paint(order)

    def paint(self, order: Order) -> None:
        """Paint a picture a seed, telling of each step. A failure is told as well, since the status was sent."""
        model, vae = self.server.model, self.server.vae
        try:
            for seed in order.seeds:

                def on_step(i: int, x_0: Tensor, seed: int = seed) -> None:
                    self.say(seed=seed, step=i + 1, preview=data_url(preview(vae, x_0), "jpeg"))

                picture = generate(
                    model, vae, order.photo, order.keypoints,
                    steps=order.steps, sampler=order.sampler, pose_scale=order.pose_scale,
                    appearance_scale=order.appearance_scale, seed=seed, on_step=on_step,
                )[0]  # fmt: skip
                self.say(seed=seed, picture=data_url(picture, "png"))
        except (ConnectionError, TimeoutError):
            raise
        except UserError as error:
            self.say(error=str(error))
        except Exception as error:
            traceback.print_exc()
            self.say(error=f"painting failed: {error}")

    def say(self, **event: Any) -> None:
        """Send one line of JSON, after the head of the answer if it is the first. Raises OSError if nobody listens."""
        if not hasattr(self, "talking"):
            self.talking = True
            self.start_answer(200, "application/x-ndjson")
        self.wfile.write(json.dumps(event).encode() + b"\n")

    def body(self, limit: int) -> bytes:
        """What the visitor has sent. Raises Refused if it is longer than the limit, or does not say how long it is."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,15}", length, re.ASCII):
            raise Refused(411, "a request must say its length")
        if int(length) > limit:
            self.discard(int(length))
            raise Refused(413, f"at most {limit / MEGABYTE:.0f} MB are taken, found {int(length) / MEGABYTE:.0f} MB")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise ConnectionError
        return data

    def discard(self, length: int) -> None:
        """Read and forget what was sent: browsers look for an answer only after they have sent all."""
        left = min(length, 512 * MEGABYTE)
        while left and (piece := self.rfile.read(min(left, MEGABYTE))):
            left -= len(piece)

    def start_answer(self, status: int, kind: str) -> None:
        """Send the head of an answer. The page may load nothing from elsewhere and be framed by nobody."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header(
            "Content-Security-Policy",
            "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
        )
        self.end_headers()

    def answer(self, content: bytes, kind: str, status: int = 200) -> None:
        """Send a whole answer."""
        self.start_answer(status, kind)
        self.wfile.write(content)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), "application/json", status)

    def log_request(self, *_: object) -> None:
        """Nothing: only errors are worth a line."""


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.playground", __doc__)
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="a model folder, made by cfld.convert or cfld.train (default: the bundled tiny model)",
    )
    parser.add_argument("--port", type=int, default=8765, help="of 127.0.0.1; 0 takes any that is free")
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options = parser.parse_args(argv)
    if options.port and not 1024 <= options.port < 65536:
        raise UserError(f"--port must be 0 or within 1024 .. 65535, found {options.port}")
    device = pick_device(options.device)
    model, vae = load(options.model, device, PRECISIONS["bf16" if device.type == "cuda" else "fp32"])
    for module in (model, vae):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with PlaygroundServer(model, vae, options.port) as server:
        print(f"open http://{server.hosts[0]} in a browser; Ctrl-C ends the playground", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
