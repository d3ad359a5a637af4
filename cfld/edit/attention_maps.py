"""Attention maps: where the queries attend in the source, and where the prompt's tokens act (Sec. 4.5, Fig. 7).

    source_maps(model, source_images)           the queries of H_D on the source, one map per block
    with token_maps(model, batch) as maps: ...  the prompt's tokens on the images that are generated meanwhile
    choose_queries(maps, regions)               the queries that respond to head, upper, middle and lower body

Maps are averaged over heads, as in the paper. Forward hooks compute them a second time and are removed afterwards, so
the network computes what it always does.

Letters in shapes: B samples, S source images, R blocks of H_D, N tokens, L context tokens of width P, D width of the
tokens, Q queries or prompt tokens, K regions, h x w positions of a map.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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

REGIONS = {  # the four of Fig. 7, as the labels of synthetic people have them
    "head": ("face", "eyes", "hair"),
    "upper": ("top", "jacket"),
    "middle": ("bottom",),
    "lower": ("shoes",),
}
FIRST_SEED = 600_000  # of the synthetic people by whom queries are chosen; no model is trained on them
HEAT = np.array([[0, 0, 40], [90, 10, 110], [190, 40, 80], [245, 130, 30], [255, 240, 120]], np.float32)


@torch.no_grad()
def attention_map(
    attention: Attention, tokens: Tensor, context: Tensor | None = None, query_bias: Tensor | None = None
) -> Tensor:
    """softmax((Q + B) K^T / sqrt(d)) of Eq. 4, averaged over heads, in float32.

    tokens (B, N, D), context (B, L, P) or None (the tokens), query_bias (B, N, D) or None: as in Attention.forward
    -> (B, N, L), which sums to 1 over L
    """
    q, k = attention.to_q(tokens), attention.to_k(tokens if context is None else context)
    if query_bias is not None:
        q = q + query_bias
    q, k = (rearrange(x.float(), "b n (h d) -> b h n d", h=attention.num_heads) for x in (q, k))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)


@contextmanager
def watching(attentions: Sequence[Attention], see: Callable[[Tensor], None]) -> Iterator[None]:
    """Within the with block, call see with the map of each attention whenever it has run."""

    def hook(attention: Attention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        see(attention_map(attention, *args, **kwargs))

    handles = [attention.register_forward_hook(hook, with_kwargs=True) for attention in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def source_maps(model: CFLD, source_images: Tensor) -> Tensor:
    """Where the queries attend in the source, in each block of H_D.

    source_images (S, 3, 256, 256) in [-1, 1] -> (S, R, Q, h, w) over f_4's 8x8 positions; each map sums to 1
    """
    maps: list[Tensor] = []
    with watching([block.cross_attention for block in model.prd.blocks], maps.append):  # type: ignore[misc]
        source_feature = model.source_encoder(source_images)[-1]
        model.prd(source_feature)
    return rearrange(torch.stack(maps, dim=1), "s r q (h w) -> s r q h w", h=source_feature.shape[2])


@contextmanager
def token_maps(model: CFLD, batch: int) -> Iterator[Tensor]:
    """Where each prompt token acts in the images that are generated within the with block.

    batch: B, how many images are generated at a time
    Yields zeros (B, Q, h, w) of the latents' size. After the with block they are each token's share of the attention at
    a position, averaged over heads, over the cross-attentions of the UNet (maps resized to the latents) and over
    timesteps: they sum to 1 over the tokens. They are of Eq. 7's fully conditional branch, so appearance_scale must not
    be 0.
    """
    size = model.config.image_size // model.config.vae.factor
    maps = torch.zeros(batch, model.config.prompt_tokens, size, size, device=model.null_prompt.device)
    seen = 0

    def see(attention: Tensor) -> None:
        nonlocal seen
        h = math.isqrt(attention.shape[1])
        conditional = rearrange(attention[-batch:], "b (h w) q -> b q h w", h=h)  # the last branch of guidance
        maps.add_(F.interpolate(conditional, size=(size, size), mode="bilinear"))
        seen += 1

    transformers = [module for module in model.unet.modules() if isinstance(module, SpatialTransformer)]
    with watching([transformer.block.cross_attention for transformer in transformers], see):
        yield maps
    maps.div_(max(seen, 1))


def region_masks(labels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """labels (B, H, W), indices of people.PARTS -> the share of each region in each position, (B, K, h, w)."""
    parts = [[people.PARTS.index(part) for part in region] for region in REGIONS.values()]
    masks = np.stack([np.isin(labels, numbers) for numbers in parts], axis=1)
    return F.adaptive_avg_pool2d(torch.from_numpy(masks).float(), size)


def choose_queries(maps: Tensor, regions: Tensor) -> tuple[list[int], Tensor]:
    """The queries that respond to the regions: a different one for each, with the largest product of overlaps.

    maps (B, Q, h, w), not negative; regions (B, K, h, w) in [0, 1], as region_masks gives them
    -> K indices of queries, and the overlaps (Q, K): the share of a query's attention that lies in a region, divided by
        the region's share of the images; uniform attention has 1
    Raises UserError if there are fewer queries than regions.
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
    """Synthetic people seen from the front, on whom no model is trained: photos, and their labels (B, 256, 176)."""
    drawn = [people.draw(seed, 0, limit=people.OWN_SEEDS) for seed in range(FIRST_SEED, FIRST_SEED + count)]
    return [Image.fromarray(photo.image) for photo in drawn], np.stack([photo.labels for photo in drawn])


def overlay(picture: Image.Image, attention: Tensor, strength: float = 0.65) -> Image.Image:
    """Lay a map (h, w) over a picture, from dark blue (0) to yellow (the map's maximum), without interpolation."""
    values = (attention / attention.max().clamp(min=1e-9)).float().cpu().numpy()
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(values, places, channel) for channel in HEAT.T], axis=-1).round().astype(np.uint8)
    heat = Image.fromarray(colours).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), heat, strength)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """Add a line of text above a picture, and a white border."""
    tile = Image.new("RGB", (picture.width + 4, picture.height + 16), "white")
    tile.paste(picture, (2, 14))
    ImageDraw.Draw(tile).text((3, 1), title, fill=(40, 40, 40), font=ImageFont.load_default(10))
    return tile
