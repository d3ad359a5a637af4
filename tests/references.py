"""Reference networks made of diffusers', transformers' and timm's blocks, to compare ours with, and how to compare."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from common import BiasedAttention, diffusers_unet, diffusers_vae  # noqa: F401 (of the benchmarks, for the tests)
from torch import Tensor, nn

from cfld.unet import UNetConfig

DATA = Path(__file__).parent / "data"


def bias_widths(config: UNetConfig) -> list[int]:
    """Widths of the cross-attentions that take a query bias, in execution order."""
    return [channels for channels in reversed(config.channels[:-1]) for _ in range(config.depth + 1)]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random values, none of them zero, of a size that keeps deep networks in range."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            scale = 0.7 * fan**-0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(scale * torch.randn(parameter.shape, generator=g) + (0 if parameter.ndim > 1 else 0.5))
            assert (parameter != 0).all()
    return module


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, in L2."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).norm() / theirs.norm()).item()


def assert_parity(
    ours: nn.Module,
    theirs: nn.Module,
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    run_ours: Callable[[list[Tensor]], Iterable[Tensor]],
    run_theirs: Callable[[list[Tensor]], Iterable[Tensor]],
    inputs: list[Tensor],
    tolerance: float = 1e-5,
) -> None:
    """Load theirs into ours through the shipping rules, then compare outputs, and the gradients of a random sum of them
    by every parameter and every input."""
    from cfld.folder import assign

    randomise(theirs)
    assign(ours, translate({name: x.clone() for name, x in theirs.state_dict().items()}), "the reference")
    gradients = []
    outputs = []
    for run in (run_ours, run_theirs):
        fresh = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        outs = list(run(fresh))
        sum((out * noise(*out.shape, seed=i)).sum() for i, out in enumerate(outs)).backward()
        outputs.append([out.detach() for out in outs])
        gradients.append([x.grad for x in fresh if x.is_floating_point()])
    assert len(outputs[0]) == len(outputs[1])
    for out, reference in zip(*outputs, strict=True):
        assert relative_error(out, reference) <= tolerance
    for gradient, reference in zip(*gradients, strict=True):
        assert relative_error(gradient, reference) <= tolerance
    named = translate({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    ours_named = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert named.keys() == ours_named.keys()
    whole = torch.cat([g.flatten() for g in named.values()]).norm()
    for name, gradient in named.items():
        assert (ours_named[name] - gradient).norm() <= tolerance * max(gradient.norm(), 1e-3 * whole), name


class OfficialPRDBlock(nn.Module):
    def __init__(self, width: int, heads: int, source_width: int):
        from diffusers.models.attention import FeedForward
        from diffusers.models.attention_processor import Attention

        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads=heads, dim_head=width // heads)
        self.attn2 = Attention(width, source_width, heads=heads, dim_head=width // heads)
        self.ff = FeedForward(width, activation_fn="geglu")

    def forward(self, h: Tensor, p: Tensor, context: Tensor) -> Tensor:
        h = h + p
        h = h + self.attn2(self.norm2(h), context)
        h = h + p
        h = h + self.attn1(self.norm1(h))
        return h + self.ff(self.norm3(h))


class OfficialPRD(nn.Module):
    def __init__(self, queries: int, width: int, depth: int, heads: int, source_width: int, positions: int):
        super().__init__()
        self.query_feat = nn.Parameter(torch.zeros(queries, width))
        self.pos_embed = nn.Parameter(torch.zeros(queries, width))
        self.kv_pos_embed = nn.Parameter(torch.zeros(1, positions, source_width))
        self.blocks = nn.ModuleList(OfficialPRDBlock(width, heads, source_width) for _ in range(depth))

    def forward(self, f4: Tensor) -> Tensor:
        context = f4.flatten(2).transpose(1, 2) + self.kv_pos_embed
        h = self.query_feat[None].repeat(len(f4), 1, 1)
        for block in self.blocks:
            h = block(h, self.pos_embed[None], context)
        return h


class OfficialHGA(nn.Module):
    """Branches counted from the finest level."""

    def __init__(self, source_widths: tuple[int, ...], output_widths: tuple[int, ...], depth: int, branches: int = 3):
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__()
        sources = [width for width in source_widths for _ in range(branches)]
        outputs = [width for width in reversed(output_widths) for _ in range(branches)]
        self.branches = branches
        self.zero_conv_ins = nn.ModuleList(nn.Conv2d(c, c // 2, 1) for c in sources)
        self.zero_conv_outs = nn.ModuleList(nn.Conv2d(c // 2, out, 1) for c, out in zip(sources, outputs, strict=True))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                BasicTransformerBlock(c // 2, c // 2 // 32, 32, double_self_attention=True, activation_fn="geglu")
                for _ in range(depth)
            )
            for c in sources
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """-> biases as tokens, the innermost first."""
        biases = []
        for i in range(len(self.blocks)):
            x = self.zero_conv_ins[i](features[i // self.branches])
            h, w = x.shape[2:]
            tokens = x.flatten(2).transpose(1, 2)
            for block in self.blocks[i]:
                tokens = block(tokens)
            x = tokens.transpose(1, 2).reshape(x.shape[0], -1, h, w)
            biases.append(self.zero_conv_outs[i](x).flatten(2).transpose(1, 2))
        return biases[::-1]


class OfficialAdapter(nn.Module):
    def __init__(self, channels: tuple[int, ...]):
        from diffusers.models.resnet import ResnetBlock2D

        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(4)
        self.conv_in = nn.Conv2d(21 * 16, channels[0], 1)
        entering = (channels[0], *channels[:-1])
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=c, out_channels=out, temb_channels=None, eps=1e-6)
            for c, out in zip(entering, channels, strict=True)
        )
        self.pool = nn.AvgPool2d(2, 2)

    def forward(self, poses: Tensor) -> list[Tensor]:
        x, features = self.conv_in(self.unshuffle(poses)), []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, None)
            features.append(x)
            if i < len(self.resnets) - 1:
                x = self.pool(x)
        return features
