"""The playground's server: the page, and what it asks for, over HTTP.

The page is page.html; it loads nothing from elsewhere. The server is the standard library's, listens only on
127.0.0.1, and answers only its own page (check_origin). It paints one picture at a time, in the order of the requests.

    GET  /                the page
    GET  /settings        what the page needs to know about joints, poses, samplers and the model
    GET  /people/K.png    an example photo: synthetic person K of those that no training uses
    POST /photo           the bytes of a photo -> the photo as JPEG, upright
    POST /pose            {"text", "pose_size", "person", "min_confidence"} -> {"keypoints"} (18, 2) as (y, x) in FRAME
    POST /paint           {"photo", "pose", "seeds", "steps", "sampler", "pose_scale", "appearance_scale"}, and to
                          retarget {"source_pose"}, the pose of the person in the photo -> lines of JSON while
                          it paints: {"waiting"}, {"seed", "step", "preview"}, {"seed", "picture"}, {"error"}

Closing the connection cancels the painting. An invalid request is answered by {"error"} and a status of 400 or more.

Letters in shapes: C latent channels, h x h positions of the latents.
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
    PaintRequest,
    Refused,
    read_paint_request,
    read_photo,
    read_pose_request,
)
from cfld.pose import BONE_COLOURS, BONES, FRAME, JOINT_COLOURS, JOINTS
from cfld.samplers import SAMPLERS
from cfld.sampling import TURBO, default_size, generate
from cfld.tools.cli import UserError
from cfld.vae import VAE

QUEUE_LIMIT = 8  # of waiting requests
EXAMPLES = people.OWN_SEEDS - people.TRAINING_SEEDS  # synthetic people that no training uses
PRESET_POSES = {  # name: archetype, view and framing of cfld.people's poses
    "standing": ("stand", "front", "full"),
    "walking": ("walk", "quarter", "full"),
    "hands on hips": ("hands on hips", "front", "full"),
    "arms up": ("arms up", "front", "knee"),
    "sitting": ("sit", "quarter", "full"),
    "from the side": ("relaxed", "side", "full"),
    "from behind": ("stand", "back", "full"),
    "upper half": ("relaxed", "front", "half"),
}
RENDERING = threading.Lock()  # one synthetic person at a time


def encode(picture: Image.Image, kind: str) -> bytes:
    """A picture -> the bytes of a file of this kind, such as png."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def data_url(picture: Image.Image, kind: str) -> str:
    """A picture -> a data: URL."""
    return f"data:image/{kind};base64,{base64.b64encode(encode(picture, kind)).decode()}"


@torch.no_grad()
def step_preview(vae: VAE, latents: Tensor) -> Image.Image:
    """latents (1, C, h, h) -> a small square picture, decoded at half their side or less: decoding SD 1.5's latents at
    full size would take longer than a sampling step."""
    side = min(latents.shape[-1] // 2, 16)
    image = vae.decode(F.interpolate(latents, size=side, mode="area").to(next(vae.parameters()).dtype))[0]
    pixels = ((image.float() / 2 + 0.5).clamp(0, 1) * 255).byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def preset_keypoints() -> dict[str, list[list[float]]]:
    """Keypoints (18, 2) of PRESET_POSES by name, from renderings of a synthetic person; hidden joints are missing."""
    person = people.identity(0)
    keypoints = {}
    for name, (archetype, view, framing) in PRESET_POSES.items():
        pose = people.sample_pose(np.random.default_rng(0), archetype, view, framing)
        keypoints[name] = people.render(person, pose, supersample=1).keypoints.round(1).tolist()
    return keypoints


def page_settings(model: CFLD, student: CFLD | None) -> dict[str, Any]:
    """The answer to GET /settings. Its samplers are those that can be asked for, a student's first."""
    height, width = default_size(model.config.image_size)
    return {
        "joints": JOINTS,
        "joint_colours": JOINT_COLOURS,
        "bones": BONES,
        "bone_colours": BONE_COLOURS,
        "frame": FRAME,
        "presets": preset_keypoints(),
        "samplers": [*(["turbo"] if student else []), *(SAMPLERS if model.config.distilled is None else ())],
        "turbo_steps": TURBO.steps,
        "seed_limit": SEED_LIMIT,
        "model": f"{model.config.image_size} x {model.config.image_size} inside, pictures of {width} x {height}",
    }


class Turns:
    """A queue whose members take turns, in the order of their arrival."""

    def __init__(self) -> None:
        self.queue: deque[object] = deque()
        self.moved = threading.Condition()

    def place(self, ticket: object) -> int:
        """How many are ahead."""
        with self.moved:
            return self.queue.index(ticket)

    @contextlib.contextmanager
    def take(self, waiting: Callable[[int], None]) -> Iterator[None]:
        """Wait for one's turn and call waiting() every second with how many are ahead; if it raises, leave the queue.
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
    """The playground of a model, and of its student if it has one, at a port of 127.0.0.1, at any free port for 0.
    Raises UserError if it is not free."""

    daemon_threads = True

    def __init__(self, model: CFLD, vae: VAE, port: int = 0, student: CFLD | None = None):
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error}): choose another --port, 0 for any") from None
        self.student = model if model.config.distilled else student
        self.model, self.vae, self.turns, self.settings = model, vae, Turns(), page_settings(model, self.student)
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PlaygroundServer
    timeout = 60  # seconds without a byte from the client

    def do_GET(self) -> None:
        self.serve({"/": self.get_page, "/settings": self.get_settings}, self.get_person)

    def do_POST(self) -> None:
        self.serve({"/photo": self.post_photo, "/pose": self.post_pose, "/paint": self.post_paint}, self.get_nothing)

    def serve(self, routes: dict[str, Callable[[], None]], otherwise: Callable[[], None]) -> None:
        """Answer by the path; answer errors with their reason."""
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client has left
            try:
                self.check_origin()
                routes.get(self.path, otherwise)()
            except Refused as refused:
                self.answer_json({"error": str(refused)}, refused.status)
            except UserError as error:
                self.answer_json({"error": str(error).replace("--", "")}, 400)  # the page has fields, not options

    def check_origin(self) -> None:
        """Refuse requests of other sites that are open in the same browser: their Origin is foreign, or the browser
        calls them cross-site (such as an image in a page), or, with DNS rebinding, their Host is foreign."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host not in self.server.hosts:
            raise Refused(403, f"the host must be {' or '.join(self.server.hosts)}, found {host}")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise Refused(403, f"the origin must be this page itself, found {origin}")
        followed = self.path == "/" and self.headers.get("Sec-Fetch-Mode") == "navigate"  # a link to the page
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
            with RENDERING:
                picture = Image.fromarray(people.draw(seed, 0, limit=people.OWN_SEEDS).image)
            self.answer(encode(picture, "png"), "image/png")

    def get_nothing(self) -> None:
        raise Refused(404, f"{self.path[:60]} is not served here")

    def post_photo(self) -> None:
        photo = fitted(read_photo(self.body(PHOTO_LIMIT)))
        photo.thumbnail((1024, 1024))
        self.answer(encode(photo, "jpeg"), "image/jpeg")

    def post_pose(self) -> None:
        self.answer_json({"keypoints": read_pose_request(self.body(JSON_LIMIT["/pose"])).tolist()})

    def post_paint(self) -> None:
        request = read_paint_request(self.body(JSON_LIMIT["/paint"]), self.server.model, self.server.student)
        with self.server.turns.take(lambda before: self.send_event(waiting=before)):
            self.paint(request)

    def paint(self, request: PaintRequest) -> None:
        """Paint one picture per seed and send an event for each step, and for a failure: the status is sent already."""
        model, vae = request.model, self.server.vae
        try:
            for seed in request.seeds:

                def on_step(i: int, x_0: Tensor, seed: int = seed) -> None:
                    self.send_event(seed=seed, step=i + 1, preview=data_url(step_preview(vae, x_0), "jpeg"))

                (picture,) = generate(
                    model,
                    vae,
                    request.photo,
                    request.keypoints,
                    request.config,
                    source_keypoints=request.source_keypoints,
                    seed=seed,
                    on_step=on_step,
                )
                self.send_event(seed=seed, picture=data_url(picture, "png"))
        except (ConnectionError, TimeoutError):
            raise
        except UserError as error:
            self.send_event(error=str(error))
        except Exception as error:
            traceback.print_exc()
            self.send_event(error=f"painting failed: {error}")

    def send_event(self, **event: Any) -> None:
        """Send a line of JSON, the first one after the head of the answer. Raises OSError if the client has left."""
        if not hasattr(self, "streaming"):
            self.streaming = True
            self.start_answer(200, "application/x-ndjson")
        self.wfile.write(json.dumps(event).encode() + b"\n")

    def body(self, limit: int) -> bytes:
        """The request's body. Raises Refused if it is longer than the limit, or its length is not declared."""
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
        """Read a body and drop it: browsers look for an answer only after they have sent everything."""
        left = min(length, 512 * MEGABYTE)
        while left and (piece := self.rfile.read(min(left, MEGABYTE))):
            left -= len(piece)

    def start_answer(self, status: int, kind: str) -> None:
        """Send the head of an answer. The page may load nothing from elsewhere, and no other page may frame it."""
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
        """Send a complete answer."""
        self.start_answer(status, kind)
        self.wfile.write(content)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), "application/json", status)

    def log_request(self, *_: object) -> None:
        """Log nothing: only errors deserve a line."""
