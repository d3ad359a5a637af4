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

import base64
import contextlib
import io
import json
import re
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cfld import people
from cfld.model import CFLD
from cfld.photos.crop import fitted
from cfld.playground.requests import (
    JSON_LIMIT,
    MEGABYTE,
    PHOTO_LIMIT,
    SEED_LIMIT,
    Order,
    Refused,
    read_order,
    read_photo,
    read_pose,
)
from cfld.pose import BONE_COLOURS, BONES, FRAME, JOINT_COLOURS, JOINTS
from cfld.sampling import default_size, generate
from cfld.scheduler import SAMPLERS
from cfld.tools.cli import UserError
from cfld.vae import VAE

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
DRAWING = threading.Lock()  # one person at a time


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
        self.answer((resources.files("cfld.playground") / "page.html").read_bytes(), "text/html; charset=utf-8")

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
