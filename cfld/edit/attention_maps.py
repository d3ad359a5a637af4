"""Attention maps: what the queries look at, and where the prompt's tokens act (Sec. 4.5, Fig. 7).

    source_maps(model, source_images)           each query of H_D on the source photo, a map a block
    with token_maps(model, rows) as maps: ...   each prompt token on the pictures that denoise paints meanwhile
    choose_queries(maps, regions)               the queries that answer to head, upper, middle and lower body

The maps are averaged over heads, as the paper's are. They are computed a second time beside the forward pass, by hooks
that are gone afterwards: the network itself computes what it always does.

Letters in shapes: B rows, S source images, R blocks of H_D, Q queries or tokens, K regions, h x w positions of a map.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cfld import people
from cfld.model import CFLD
from cfld.tools.cli import UserError
from cfld.unet import Attention, SpatialTransformer

REGIONS = {  # Fig. 7's four, by the parts that the drawn people are labelled with
    "head": ("face", "eyes", "hair"),
    "upper": ("top", "jacket"),
    "middle": ("bottom",),
    "lower": ("shoes",),
}
FIRST_SEED = 600_000  # of the people whose photos tell which query answers to which region: none is trained on
HEAT = np.array([[0, 0, 40], [90, 10, 110], [190, 40, 80], [245, 130, 30], [255, 240, 120]], np.float32)


@torch.no_grad()
def attention_map(
    attention: Attention, tokens: Tensor, context: Tensor | None = None, query_bias: Tensor | None = None
) -> Tensor:
    """softmax((Q + B) K^T / sqrt(d)) of Eq. 4, averaged over heads, in float32.

    tokens (B, N, D), context (B, L, P) or None (the tokens), query_bias (B, N, D) or None, as Attention.forward takes
    them -> (B, N, L); each of the N rows sums to 1
    """
    q, k = attention.to_q(tokens), attention.to_k(tokens if context is None else context)
    if query_bias is not None:
        q = q + query_bias
    q, k = (rearrange(x.float(), "b n (h d) -> b h n d", h=attention.num_heads) for x in (q, k))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)


@contextmanager
def watching(attentions: Sequence[Attention], see: Callable[[Tensor], None]) -> Iterator[None]:
    """Within the block, call see with the map of each attention whenever it has run."""
    hooks = [
        attention.register_forward_hook(lambda module, args, out: see(attention_map(module, *args)))
        for attention in attentions
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def source_maps(model: CFLD, source_images: Tensor) -> Tensor:
    """What the queries look at in the source, in each block of H_D.

    source_images (S, 3, 256, 256) in [-1, 1] -> (S, R, Q, h, w) of f_4's 8x8 positions; each map sums to 1
    """
    maps: list[Tensor] = []
    with watching([block.cross_attention for block in model.prd.blocks], maps.append):  # type: ignore[misc]
        source_feature = model.source_encoder(source_images)[-1]
        model.prd(source_feature)
    return rearrange(torch.stack(maps, dim=1), "s r q (h w) -> s r q h w", h=source_feature.shape[2])


@contextmanager
def token_maps(model: CFLD, rows: int) -> Iterator[Tensor]:
    """Where each prompt token acts in the pictures that are painted within the block.

    Gives zeros (B, Q, h, w), B = rows, at the size of the latents. After the block they are the share of a position's
    attention that a token has, averaged over heads, over all cross-attentions of the UNet (their maps resized to the
    latents), and over timesteps: at each position they sum to 1 over the tokens. Of Eq. 7's rows it is the full one,
    whose appearance_scale must therefore not be 0.
    """
    size = model.config.image_size // model.config.vae.factor
    maps = torch.zeros(rows, model.config.prompt_tokens, size, size, device=model.null_prompt.device)
    seen = 0

    def see(attention: Tensor) -> None:
        nonlocal seen
        h = math.isqrt(attention.shape[1])
        full = rearrange(attention[-rows:], "b (h w) q -> b q h w", h=h)  # guidance puts the full row last
        maps.add_(F.interpolate(full, size=(size, size), mode="bilinear"))
        seen += 1

    transformers = [module for module in model.unet.modules() if isinstance(module, SpatialTransformer)]
    with watching([transformer.block.cross_attention for transformer in transformers], see):
        yield maps
    maps.div_(max(seen, 1))


def region_masks(labels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """labels (B, H, W), numbers of people.PARTS -> the share of each region in each position, (B, K, h, w)."""
    parts = [[people.PARTS.index(part) for part in region] for region in REGIONS.values()]
    masks = np.stack([np.isin(labels, numbers) for numbers in parts], axis=1)
    return F.adaptive_avg_pool2d(torch.from_numpy(masks).float(), size)


def choose_queries(maps: Tensor, regions: Tensor) -> tuple[list[int], Tensor]:
    """The queries that answer to the regions: each another one, with the largest product of overlaps.

    maps (B, Q, h, w), not negative; regions (B, K, h, w) in [0, 1], as region_masks gives them
    -> K numbers of queries, and the overlaps (Q, K): the share of a query's attention that lies in a region, divided by
        the region's share of the pictures; 1 is what looking everywhere alike would have
    """
    if maps.shape[1] < regions.shape[1]:
        raise UserError(f"{regions.shape[1]} regions need as many queries or more, found {maps.shape[1]}")
    shares = maps / maps.sum(dim=(-2, -1), keepdim=True)
    inside = torch.einsum("b q h w, b k h w -> q k", shares, regions.to(shares))
    overlaps = (inside / regions.to(shares).mean(dim=(-2, -1)).sum(dim=0).clamp(min=1e-9)).cpu()
    logs = overlaps.clamp(min=1e-9).log().numpy()
    columns = np.arange(logs.shape[1])
    best = max(itertools.permutations(range(len(logs)), len(columns)), key=lambda rows: logs[list(rows), columns].sum())
    return list(best), overlaps


def labelled_photos(count: int) -> tuple[list[Image.Image], np.ndarray]:
    """Drawn people seen from the front, whom no model was trained on: photos, and their labels (B, 256, 176)."""
    drawn = [people.draw(seed, 0, limit=people.OWN_SEEDS) for seed in range(FIRST_SEED, FIRST_SEED + count)]
    return [Image.fromarray(photo.image) for photo in drawn], np.stack([photo.labels for photo in drawn])


def overlay(picture: Image.Image, attention: Tensor, strength: float = 0.65) -> Image.Image:
    """A map (h, w) over a picture, from dark blue (nothing) to yellow (the map's maximum), each position as it is."""
    values = (attention / attention.max().clamp(min=1e-9)).float().cpu().numpy()
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(values, places, channel) for channel in HEAT.T], axis=-1).round().astype(np.uint8)
    heat = Image.fromarray(colours).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), heat, strength)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture with a line of text above it and a white border."""
    tile = Image.new("RGB", (picture.width + 4, picture.height + 16), "white")
    tile.paste(picture, (2, 14))
    ImageDraw.Draw(tile).text((3, 1), title, fill=(40, 40, 40), font=ImageFont.load_default(10))
    return tile


def ragged_grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of equally large pictures, of different lengths, on white."""
    width, height = rows[0][0].size
    grid = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            grid.paste(picture, (width * x, height * y))
    return grid
