"""Download the public files that cfld.convert, cfld.evaluate and cfld.photos read.

    python -m cfld.convert fetch sd15 swin        to train; then cfld.convert init --out weights/start
    python -m cfld.convert fetch sd15-vae cfld    to sample; then cfld.convert official --out weights/official
    python -m cfld.convert fetch metrics          to evaluate: LPIPS and FID of cfld.evaluate
    python -m cfld.convert fetch pose             to find joints in photos (docs/poses.md)

Names: sd15 (UNet and VAE), sd15-vae, sd15-single-file (both in one file), vae-ft-mse (better faces), swin, swin-timm
(the same weights from Hugging Face), clip (for baseline B2), metrics, pose, cfld (says where the authors' checkpoint
is). Files go to weights/, where the commands look for them. A download that was cut goes on where it was. Every file is
checked against its SHA-256 and listed in SHA256SUMS beside it. HF_ENDPOINT names a mirror of Hugging Face, and HF_TOKEN
is sent to that host alone.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cfld.convert.download import ask, begun, check_room, download, gigabytes
from cfld.tools.cli import UserError
from cfld.tools.files import alone_in, sha256
from cfld.tools.sums import check_sums, record_sum, recorded_sum

FOLDER = Path("weights")  # of the working directory
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class PublicFile:
    """A file of weights as its publisher has it."""

    part: str  # what cfld.convert reads from it
    path: str  # where it goes below FOLDER
    url: str  # {hub}: Hugging Face or a mirror of it
    size: int | None  # in bytes
    sha256: str | None  # None: the publisher's, if it sends one
    licence: str


SD15, RAIL = "{hub}/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main", "CreativeML Open RAIL-M"
MODEL = "diffusion_pytorch_model.safetensors"
SD15_VAE = PublicFile("vae", f"public/sd15/vae/{MODEL}", f"{SD15}/vae/{MODEL}", 334_643_276,
                      "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c", RAIL)  # fmt: skip
BLAZEPOSE = "https://cdn.jsdelivr.net/npm/@mediapipe/pose@0.5.1675469404"  # MediaPipe's package of this version
FILES: dict[str, tuple[PublicFile, ...]] = {
    "sd15": (
        PublicFile("unet", f"public/sd15/unet/{MODEL}", f"{SD15}/unet/{MODEL}", 3_438_167_540,
                   "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1", RAIL),
        SD15_VAE,
    ),
    "sd15-vae": (SD15_VAE,),
    "sd15-single-file": (
        PublicFile("sd", "public/sd15/v1-5-pruned-emaonly.safetensors", f"{SD15}/v1-5-pruned-emaonly.safetensors",
                   4_265_146_304, "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa", RAIL),
    ),
    "vae-ft-mse": (
        PublicFile("vae", f"public/sd-vae-ft-mse/{MODEL}", f"{{hub}}/stabilityai/sd-vae-ft-mse/resolve/main/{MODEL}",
                   334_643_276, "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815", "MIT"),
    ),
    "swin": (
        PublicFile("swin", "public/swin/swin_base_patch4_window12_384_22kto1k.pth",
                   "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
                   "swin_base_patch4_window12_384_22kto1k.pth", None, None, "MIT"),
    ),
    "swin-timm": (
        PublicFile("swin", "public/swin/model.safetensors",
                   "{hub}/timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k/resolve/main/model.safetensors",
                   None, None, "MIT"),
    ),
    "clip": (
        PublicFile("clip", "public/clip/model.safetensors",
                   "{hub}/openai/clip-vit-large-patch14/resolve/main/model.safetensors", 1_710_540_580,
                   "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb", "MIT (github.com/openai/CLIP)"),
    ),
    "metrics": (
        PublicFile("alexnet", "metrics/alexnet-owt-7be5be79.pth",
                   "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", 244_408_911,
                   "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02", "BSD-3-Clause"),
        PublicFile("lpips heads", "metrics/alex.pth",
                   "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
                   6_009, "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", "BSD-2-Clause"),
        PublicFile("inception", "metrics/inception_v3_google-0cc3c7bd.pth",
                   "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth", 108_949_747,
                   "0cc3c7bd75056d25e46cba549dc184522069b81e9787eff6df84f397bd52a5ef", "BSD-3-Clause"),
        PublicFile("inception of 2015", "metrics/pt_inception-2015-12-05-6726825d.pth",
                   "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                   "pt_inception-2015-12-05-6726825d.pth", 95_628_359,
                   "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2", "Apache-2.0"),
    ),
    "pose": (
        PublicFile("detector of people", "pose/pose_solution_packed_assets.data",
                   f"{BLAZEPOSE}/pose_solution_packed_assets.data", 2_962_288,
                   "a63c614bef30d35947f13be361820b1e4e3bec9cfeebf4d11216a18373108e85", "Apache-2.0"),
        PublicFile("joints of people", "pose/pose_landmark_heavy.tflite",
                   f"{BLAZEPOSE}/pose_landmark_heavy.tflite", 27_709_200,
                   "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe", "Apache-2.0"),
    ),
}  # fmt: skip
DRIVE = "https://drive.google.com/drive/folders/1s0DcLzBEugRFf20OEmFKiW3tsKoaOOAZ"  # README of github.com/YanzuoLu/CFLD
OFFICIAL = {"model": "public/cfld/pytorch_model.bin", "unet": "public/cfld/pytorch_model_1.bin"}  # from DRIVE, by hand


def whole(file: PublicFile, path: Path, url: str, token: str | None) -> bool:
    """Whether the file lies there already; then it is listed in SHA256SUMS. Raises UserError if another file does."""
    if not path.exists():
        return False
    expected, size = file.sha256 or recorded_sum(path), file.size
    if expected is None:  # put there by hand
        version = ask(url, token)
        expected, size = version.sha256, version.size
    found = sha256(path) if size in (None, path.stat().st_size) else None
    if found is None or found != (expected or found):
        raise UserError(
            f"{path} is another file than {url}: {path.stat().st_size} bytes, SHA-256 {found or 'not computed'}, "
            f"expected {size or 'any'}, {expected or 'any'}; remove it and fetch it again, or choose another --to"
        )
    record_sum(path, found)
    print(f"{found}  {path}  (is there already{'' if expected else '; its publisher sends no sum to compare with'})")
    return True


def hub(endpoint: str | None) -> tuple[str, str | None]:
    """The address of Hugging Face or of a mirror, and the token for it. Raises UserError."""
    address = (endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    parts, token = urlsplit(address), os.environ.get("HF_TOKEN", "").strip()
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise UserError(f"--endpoint and HF_ENDPOINT must be an address such as {HUB}, found {address}")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError("HF_TOKEN must be one word of ASCII, found other characters: set it again, or unset it")
    if token and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(f"HF_TOKEN would be readable on its way to {address}: use https, or unset HF_TOKEN")
    return address, token or None


def say_where_the_checkpoint_is(folder: Path) -> None:
    """What fetch can say of the authors' checkpoint, which lies where no program gets it."""
    paths = [folder / path for path in OFFICIAL.values()]
    if not all(path.is_file() for path in paths):
        print(
            f"The authors' checkpoint lies in a Google Drive folder:\n    {DRIVE}\n"
            f"(linked from https://github.com/YanzuoLu/CFLD, whose terms are theirs). Download its two files to\n"
            + "".join(f"    {path}\n" for path in paths)
            + "and, after fetch sd15-vae, give"
        )
    where = "" if folder == FOLDER else f" --weights {folder}"
    print(f"    python -m cfld.convert official{where} --out weights/official")


def fetch(options: argparse.Namespace) -> None:
    """Download what was named and is not there yet."""
    address, token = hub(options.endpoint)
    files = {file.path: file for name in dict.fromkeys(options.names) for file in FILES.get(name, ())}
    urls = {path: file.url.format(hub=address) for path, file in files.items()}
    tokens = {path: token if "{hub}" in file.url else None for path, file in files.items()}
    if options.dry_run:
        for path, file in files.items():
            target = options.to / path
            state = ", is there" if target.exists() else ", begun" if begun(target) else ""
            size = "size unknown" if file.size is None else gigabytes(file.size)
            print(f"{target}  ({size}, {file.licence}{state})\n    {urls[path]}")
    else:
        missing = [path for path in files if not (options.to / path).exists()]
        check_room(options.to, sum(max((files[path].size or 0) - begun(options.to / path), 0) for path in missing))
        for path, file in files.items():
            target, url, key = options.to / path, urls[path], tokens[path]
            with alone_in(target.parent):
                if not whole(file, target, url, key):
                    digest = download(url, target, file.sha256 or recorded_sum(target), file.size, key)
                    print(f"{digest}  {target}  ({file.licence})")
    if "cfld" in options.names:
        say_where_the_checkpoint_is(options.to)


def find(folder: Path, *wanted: str) -> str | None:
    """A file that fetch has put below a folder: the first of FILES that one of these parts can be read from."""
    found = (folder / file.path for files in FILES.values() for file in files if file.part in wanted)
    return next((str(path) for path in found if path.is_file()), None)


def use_fetched(options: argparse.Namespace) -> None:
    """Fill in the files that init or official was not given, if fetch has put them below options.weights, and check all
    files against the SHA256SUMS beside them. With --config, of other widths, none are looked for. Raises UserError."""
    if "weights" not in options:
        return
    official = "model" in options
    found = {part: find(options.weights, part, "sd") for part in ("unet", "vae")}
    if official:
        found |= {name: str(options.weights / path) for name, path in OFFICIAL.items()}
    elif not (options.swin or options.clip):
        source = "clip" if options.ablation == "B2" else "swin"
        found[source] = find(options.weights, source)
    for part, path in found.items():
        given = getattr(options, part) or (part in ("unet", "vae") and getattr(options, "sd", None))
        if not (given or options.config):
            setattr(options, part, path)
    needed = {"model": "cfld", "unet": "cfld", "vae": "sd15-vae"} if official else {}
    for part, name in needed.items():
        path = getattr(options, part)
        if path is None or (path == found[part] and not Path(path).is_file()):
            found_no = f", found no {path}" if path else ""
            raise UserError(f"--{part} FILE is needed{found_no}: python -m cfld.convert fetch {name}")
    check_sums(*(getattr(options, name, None) for name in ("model", "unet", "vae", "sd", "swin", "clip")))


def add_fetch(commands: Any) -> None:
    """Add the sub-command."""
    sub = commands.add_parser("fetch", help="download public files", description=__doc__)
    names = (*FILES, "cfld")
    sub.add_argument("names", nargs="+", choices=names, metavar="NAME", help="what to fetch (see --dry-run)")
    sub.add_argument("--to", type=Path, default=FOLDER, metavar="DIR", help="where files go")
    sub.add_argument("--endpoint", metavar="URL", help=f"a mirror of {HUB} (default: HF_ENDPOINT)")
    sub.add_argument("--dry-run", action="store_true", help="list files, sizes, licences, addresses; fetch nothing")
    sub.set_defaults(run=fetch)
