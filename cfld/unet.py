"""Stable Diffusion 1.5's UNet: H_N of the paper (Sec. 3.1 and 3.2, Fig. 2a and 2c; eps_theta of Eq. 2, 3, 5, 7).

It predicts the noise in z_t (or v, in v-prediction models such as TINY: CFLD.forward converts it to noise). The paper
adds to it in three places:
    the coarse-grained prompt F_d^out is the context of every cross-attention;
    pose feature i is added to the last map of down block i                         (Fig. 2a);
    query bias k is added to the queries of the k-th cross-attention of the up path (Eq. 4, Fig. 2c).

Letters in shapes: B samples, C channels, H x W positions, N = H * W tokens, D their width, E width of the time
embedding, L prompt tokens of width P; as in cfld/model.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cfld.tools.checks import check_config, check_tensor, check_timesteps


@dataclass(frozen=True)
class UNetConfig:
    latent_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of each level, finest first; the last has no attention
    depth: int = 2  # residual blocks per level of the down path; the up path has one more
    num_heads: int = 8
    context_width: int = 768
    groups: int = 32

    def __post_init__(self) -> None:
        check_config(self, "unet")
        if len(self.channels) < 2:
            raise ValueError(f"unet.channels must have at least 2 levels, found {len(self.channels)}: {self.channels}")
        for channels in self.channels:
            if channels % self.groups or channels % self.num_heads:
                raise ValueError(
                    f"unet.channels {self.channels} must each be a multiple of unet.groups {self.groups} "
                    f"and of unet.num_heads {self.num_heads}; {channels} is not"
                )


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """timesteps (B,) -> (B, width): [cos(t w_k) | sin(t w_k)], w_k = 10000^(-2k / width), in float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, with a residual; the time embedding, if given, is added between the two."""

    def __init__(self, channels: int, out_channels: int, groups: int, eps: float, time_width: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_width, out_channels) if time_width else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time_emb (B, E), (1, E) or None -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_proj is not None and time_emb is not None:
            h = h + self.time_proj(F.silu(time_emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to a context. With a query bias it is the paper's Eq. 4:

    Q = W_q F_h,  K = W_k F_d^out,  V = W_v F_d^out,  F_o = softmax((Q + B) K^T / sqrt(d)) V
    """

    attend = staticmethod(F.scaled_dot_product_attention)  # an attribute: training/attention.py replaces it on CPUs

    def __init__(self, width: int, num_heads: int, context_width: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width or width, width, bias=False)
        self.to_v = nn.Linear(context_width or width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor | None = None, query_bias: Tensor | None = None) -> Tensor:
        """tokens (B, N, D), context (B, L, P) or None (the tokens), query_bias (B, N, D) or None -> (B, N, D)."""
        context = tokens if context is None else context
        q, k, v = self.to_q(tokens), self.to_k(context), self.to_v(context)
        if query_bias is not None:
            if query_bias.shape != q.shape:
                raise ValueError(
                    f"a query bias must be {tuple(q.shape)} as the queries, found {tuple(query_bias.shape)}"
                )
            q = q + query_bias  # Q + B of Eq. 4
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.num_heads) for x in (q, k, v))
        out = self.attend(q, k, v)  # softmax(q k^T / sqrt(d)) v
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """GEGLU: W_out (a * gelu(b)), where [a | b] = W_in x."""

    def __init__(self, width: int):
        super().__init__()
        self.proj_in = nn.Linear(width, 8 * width)
        self.proj_out = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N, D) -> (B, N, D)."""
        value, gate = self.proj_in(tokens).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; each after a LayerNorm, each with a residual."""

    def __init__(self, width: int, num_heads: int, context_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, num_heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, tokens: Tensor, prompt: Tensor, query_bias: Tensor | None) -> Tensor:
        """tokens (B, N, D), prompt (B, L, P), query_bias (B, N, D) or None -> (B, N, D)."""
        tokens = tokens + self.self_attention(self.norm1(tokens))
        tokens = tokens + self.cross_attention(self.norm2(tokens), prompt, query_bias)
        return tokens + self.feed_forward(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a map, between 1x1 convolutions, with a residual."""

    def __init__(self, channels: int, num_heads: int, context_width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.block = TransformerBlock(channels, num_heads, context_width)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, prompt: Tensor, query_bias: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), prompt (B, L, P), query_bias (B, H*W, C) or None -> (B, C, H, W)."""
        tokens = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        tokens = self.block(tokens, prompt, query_bias)
        return x + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """A level of the down path: residual blocks, each followed by attention, then the pose, then a halving."""

    def __init__(self, config: UNetConfig, level: int):
        super().__init__()
        last = level == len(config.channels) - 1
        width = config.channels[level]
        widths = [config.channels[max(level - 1, 0)]] + [width] * config.depth
        self.resnets = nn.ModuleList(
            ResBlock(c, width, config.groups, 1e-5, 4 * config.channels[0]) for c in widths[:-1]
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(width, config.num_heads, config.context_width, config.groups)
            for _ in range(0 if last else config.depth)
        )
        self.downsample = None if last else nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(
        self, x: Tensor, time_emb: Tensor, prompt: Tensor, pose_feature: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, H, W), time_emb (B, E), prompt (B, L, P), pose_feature (B, C', H, W) or None
        -> (B, C', H/2, W/2), and the skips of this level in execution order; the last level keeps H and W."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time_emb)
            if self.attentions:
                x = self.attentions[i](x, prompt)
            if pose_feature is not None and i == len(self.resnets) - 1:
                x = x + pose_feature  # Fig. 2a; before the last skip is taken, so that the up path sees the pose too
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """The innermost level: residual block, attention, residual block."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        width = config.channels[-1]
        self.resnet1 = ResBlock(width, width, config.groups, 1e-5, 4 * config.channels[0])
        self.attention = SpatialTransformer(width, config.num_heads, config.context_width, config.groups)
        self.resnet2 = ResBlock(width, width, config.groups, 1e-5, 4 * config.channels[0])

    def forward(self, x: Tensor, time_emb: Tensor, prompt: Tensor) -> Tensor:
        """x (B, C, H, W), time_emb (B, E), prompt (B, L, P) -> (B, C, H, W)."""
        return self.resnet2(self.attention(self.resnet1(x, time_emb), prompt), time_emb)


class UpBlock(nn.Module):
    """A level of the up path: residual blocks that take a skip each, each followed by attention, then a doubling."""

    def __init__(self, config: UNetConfig, level: int):
        super().__init__()
        inner = level == len(config.channels) - 1
        width = config.channels[level]
        entering = config.channels[level if inner else level + 1]
        skips = [width] * config.depth + [config.channels[max(level - 1, 0)]]
        incoming = [entering] + [width] * config.depth
        self.resnets = nn.ModuleList(
            ResBlock(c + skip, width, config.groups, 1e-5, 4 * config.channels[0])
            for c, skip in zip(incoming, skips, strict=True)
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(width, config.num_heads, config.context_width, config.groups)
            for _ in range(0 if inner else config.depth + 1)
        )
        self.upsample = Upsample(width) if level > 0 else None

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        time_emb: Tensor,
        prompt: Tensor,
        query_biases: Sequence[Tensor | None],
    ) -> Tensor:
        """x (B, C, H, W), skips in the order of use, time_emb (B, E), prompt (B, L, P), query_biases (B, H*W, C') or
        None, one per attention -> (B, C', 2H, 2W); the finest level keeps H and W."""
        for i, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            x = resnet(torch.cat([x, skip], dim=1), time_emb)
            if self.attentions:
                x = self.attentions[i](x, prompt, query_biases[i])
        return x if self.upsample is None else self.upsample(x)


class UNet(nn.Module):
    """eps_theta(z_t, t, prompt, pose features, query biases).

    With R a ResBlock and T a SpatialTransformer; each R of the up path takes a skip of the down path:

        conv_in                                       4 ->  320 channels    64 x 64
        down 0     R T, R T + pose feature 0, halve          320            64 -> 32
        down 1     R T, R T + pose feature 1, halve          640            32 -> 16
        down 2     R T, R T + pose feature 2, halve         1280            16 -> 8
        down 3     R, R                                     1280             8
        mid        R T R                                    1280             8
        up 0       R, R, R, double                          1280             8 -> 16
        up 1       R T, R T, R T, double                    1280            16 -> 32       query biases 0, 1, 2
        up 2       R T, R T, R T, double                     640            32 -> 64       query biases 3, 4, 5
        up 3       R T, R T, R T                             320            64             query biases 6, 7, 8
        conv_out                                    320 ->    4             64
    """

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = config
        self.num_timesteps = 1000  # CFLD sets those of its scheduler
        width, levels = config.channels[0], range(len(config.channels))
        self.time_mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.down = nn.ModuleList(DownBlock(config, level) for level in levels)
        self.mid = MidBlock(config)
        self.up = nn.ModuleList(UpBlock(config, level) for level in reversed(levels))
        self.norm_out = nn.GroupNorm(config.groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompt: Tensor,
        pose_features: Sequence[Tensor] | None = None,
        query_biases: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict the noise in z_t (or v, see scheduler.prediction_type).

        latents: z_t (B, 4, h, w), h and w multiples of 8
        timesteps (B,): integers in [0, 999]; or (1,), one for all samples
        prompt (B, L, 768): the coarse-grained prompt F_d^out
        pose_features: (B, 320, h, w), (B, 640, h/2, w/2), (B, 1280, h/4, w/4); or None: no pose
        query_biases: nine of (B, N, C) in execution order, three each of (hw/16, 1280), (hw/4, 640), (hw, 320); or
            None: no biases
        -> noise_pred (B, 4, h, w)
        Raises ValueError if shapes, counts, dtypes or devices do not fit, or, on the CPU, a timestep is out of range.
        """
        self.check_inputs(latents, timesteps, prompt, pose_features, query_biases)

        # Embedding
        time_emb = self.time_mlp(timestep_embedding(timesteps, self.config.channels[0]).to(latents.dtype))
        x = self.conv_in(latents)

        # Encoder
        skips = [x]
        features: list[Tensor | None] = [None] * len(self.down) if pose_features is None else [*pose_features, None]
        for down, pose_feature in zip(self.down, features, strict=True):
            x, level_skips = down(x, time_emb, prompt, pose_feature)
            skips += level_skips
        x = self.mid(x, time_emb, prompt)

        # Decoder
        biases = iter(query_biases or ())
        for up in self.up:
            level_skips = [skips.pop() for _ in up.resnets]  # type: ignore[union-attr]
            level_biases = [next(biases, None) for _ in up.attentions]  # type: ignore[union-attr]
            x = up(x, level_skips, time_emb, prompt, level_biases)
        return self.conv_out(F.silu(self.norm_out(x)))

    def check_inputs(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompt: Tensor,
        pose_features: Sequence[Tensor] | None,
        query_biases: Sequence[Tensor] | None,
    ) -> None:
        """Raise ValueError unless shapes, counts, dtypes and devices fit."""
        config, weight = self.config, self.conv_in.weight
        check_tensor("latents", latents, ("B", config.latent_channels, "h", "w"), weight)
        samples, _, height, width = latents.shape
        attended, halvings = len(config.channels) - 1, 2 ** (len(config.channels) - 1)
        if height % halvings or width % halvings:
            raise ValueError(
                f"height and width of the latents must be multiples of {halvings}, found {height} and {width}"
            )
        check_timesteps(timesteps, self.num_timesteps, samples)
        check_tensor("prompt", prompt, (samples, "L", config.context_width), weight)
        biases = attended * (config.depth + 1)
        for what, found, expected in (
            ("pose features", pose_features, attended),
            ("query biases", query_biases, biases),
        ):
            if found is not None and len(found) != expected:
                raise ValueError(f"the number of {what} must be {expected}, found {len(found)}")
        for level, feature in enumerate(pose_features or ()):
            shape = (samples, config.channels[level], height // 2**level, width // 2**level)
            check_tensor(f"pose feature {level}", feature, shape, weight)
        for k, bias in enumerate(query_biases or ()):
            check_tensor(f"query bias {k}", bias, (samples, "N", "C"), weight)
