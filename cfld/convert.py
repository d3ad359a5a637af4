"""Public weights in, public layouts out.

    python -m cfld.convert init --unet F --vae F --swin F --out DIR       a model folder to train from
    python -m cfld.convert init --sd v1-5-pruned-emaonly.safetensors --swin F --out DIR
    python -m cfld.convert init --ablation B2 --unet F --vae F --clip F --out DIR     for a baseline of Table 3
    python -m cfld.convert official --model pytorch_model.bin --unet pytorch_model_1.bin --vae F --out DIR
    python -m cfld.convert checkpoint RUN/checkpoints/best.safetensors --out DIR      of a training that is under way
    python -m cfld.convert export --to official|diffusers DIR OUT         names that other code reads

Each public layout is a table of two columns, theirs and ours, used in both directions: a name is read from left to
right, at each dot the first row that fits is applied, and a part without a row stays. Nothing is skipped silently: a
tensor that is missing, unexpected or of another shape is an error, and what is dropped on purpose is logged with its
reason. weights/README.md says where the files come from.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfld.ablations import substitutes
from cfld.adapter import PoseAdapter
from cfld.clip import CLIPConfig, CLIPImageEncoder
from cfld.config import ABLATIONS, SD15, CFLDConfig, ablation, from_dict, read_config
from cfld.files import (
    HelpFormatter,
    UserError,
    atomic,
    command,
    command_parser,
    parse_seed,
    read_safetensors,
    read_tensors,
    write_json,
    write_tensors,
)
from cfld.hga import HybridGranularityAttention
from cfld.model import CFLD, assign, load, save
from cfld.prd import PerceptionRefinedDecoder
from cfld.swin import Swin, SwinConfig
from cfld.unet import UNet, UNetConfig
from cfld.vae import VAE, VAEConfig

log = logging.getLogger(__name__)

Rules = Sequence[tuple[str, str]]

# Theirs, ours. -------------------------------------------------------------------------------------------------------

LAYERS: Rules = [
    ("to_out.0",      "to_out"),
    ("ff.net.0.proj", "feed_forward.proj_in"),
    ("ff.net.2",      "feed_forward.proj_out"),
]  # fmt: skip

TRANSFORMER: Rules = [
    ("transformer_blocks.0", "block"),
    ("attn1",                "self_attention"),
    ("attn2",                "cross_attention"),
    *LAYERS,
]  # fmt: skip

UNET_DIFFUSERS: Rules = [
    ("time_embedding.linear_1", "time_mlp.0"),
    ("time_embedding.linear_2", "time_mlp.2"),
    ("down_blocks",             "down"),
    ("downsamplers.0.conv",     "downsample"),
    ("mid_block.resnets.0",     "mid.resnet1"),
    ("mid_block.attentions.0",  "mid.attention"),
    ("mid_block.resnets.1",     "mid.resnet2"),
    ("up_blocks",               "up"),
    ("upsamplers.0",            "upsample"),
    ("time_emb_proj",           "time_proj"),
    ("conv_shortcut",           "shortcut"),
    ("conv_norm_out",           "norm_out"),
    *TRANSFORMER,
]  # fmt: skip

UNET_LDM: Rules = [  # blocks are numbered through: 3 a level on the way down, 3 on the way up
    ("time_embed",           "time_mlp"),
    ("input_blocks.0.0",     "conv_in"),
    *[(f"input_blocks.{3 * i + j + 1}.0",  f"down.{i}.resnets.{j}") for i in range(4) for j in range(2)],
    *[(f"input_blocks.{3 * i + j + 1}.1",  f"down.{i}.attentions.{j}") for i in range(3) for j in range(2)],
    *[(f"input_blocks.{3 * i + 3}.0.op",   f"down.{i}.downsample") for i in range(3)],
    ("middle_block.0",       "mid.resnet1"),
    ("middle_block.1",       "mid.attention"),
    ("middle_block.2",       "mid.resnet2"),
    ("output_blocks.2.1",    "up.0.upsample"),
    *[(f"output_blocks.{3 * i + 2}.2",     f"up.{i}.upsample") for i in range(1, 3)],
    *[(f"output_blocks.{3 * i + j}.0",     f"up.{i}.resnets.{j}") for i in range(4) for j in range(3)],
    *[(f"output_blocks.{3 * i + j}.1",     f"up.{i}.attentions.{j}") for i in range(1, 4) for j in range(3)],
    ("transformer_blocks.0.norm1", "block.norm1"),  # not that of a residual block, below
    ("transformer_blocks.0.norm2", "block.norm2"),
    ("in_layers.0",          "norm1"),
    ("in_layers.2",          "conv1"),
    ("emb_layers.1",         "time_proj"),
    ("out_layers.0",         "norm2"),
    ("out_layers.3",         "conv2"),
    ("skip_connection",      "shortcut"),
    ("out.0",                "norm_out"),
    ("out.2",                "conv_out"),
    *TRANSFORMER,
]  # fmt: skip

VAE_DIFFUSERS: Rules = [
    *[(f"encoder.down_blocks.{i}.downsamplers.0", f"encoder.levels.{i}.resize") for i in range(8)],
    *[(f"decoder.up_blocks.{i}.upsamplers.0",     f"decoder.levels.{i}.resize") for i in range(8)],
    ("encoder.down_blocks",    "encoder.levels"),
    ("decoder.up_blocks",      "decoder.levels"),
    ("mid_block.resnets.0",    "mid.0"),
    ("mid_block.attentions.0", "mid.1"),
    ("mid_block.resnets.1",    "mid.2"),
    ("group_norm",             "norm"),
    ("to_out.0",               "to_out"),
    ("conv_shortcut",          "shortcut"),
    ("conv_norm_out",          "norm_out"),
    ("quant_conv",             "encoder.to_moments"),
    ("post_quant_conv",        "decoder.from_latents"),
]  # fmt: skip

VAE_DIFFUSERS_OLD: Rules = [  # as in SD 1.5's own file
    ("query",     "to_q"),
    ("key",       "to_k"),
    ("value",     "to_v"),
    ("proj_attn", "to_out"),
    *[rule for rule in VAE_DIFFUSERS if rule[1] != "to_out"],
]  # fmt: skip

VAE_LDM: Rules = [  # decoder levels are numbered from the finest
    *[(f"encoder.down.{i}.downsample",  f"encoder.levels.{i}.resize") for i in range(4)],
    *[(f"encoder.down.{i}.block",       f"encoder.levels.{i}.resnets") for i in range(4)],
    *[(f"decoder.up.{3 - i}.upsample",  f"decoder.levels.{i}.resize") for i in range(4)],
    *[(f"decoder.up.{3 - i}.block",     f"decoder.levels.{i}.resnets") for i in range(4)],
    ("mid.block_1",     "mid.0"),
    ("mid.attn_1",      "mid.1"),
    ("mid.block_2",     "mid.2"),
    ("q",               "to_q"),
    ("k",               "to_k"),
    ("v",               "to_v"),
    ("proj_out",        "to_out"),
    ("nin_shortcut",    "shortcut"),
    ("quant_conv",      "encoder.to_moments"),
    ("post_quant_conv", "decoder.from_latents"),
]  # fmt: skip

SWIN_BLOCK: Rules = [
    ("patch_embed.proj",                  "patch_embed"),
    ("patch_embed.norm",                  "patch_norm"),
    ("attn_mask",                         "attention.mask"),
    ("attn.relative_position_index",      "attention.positions"),
    ("attn.relative_position_bias_table", "attention.bias_table"),
    ("attn",                              "attention"),
    ("mlp.fc1",                           "mlp.0"),
    ("mlp.fc2",                           "mlp.2"),
]  # fmt: skip

SWIN_MICROSOFT: Rules = [  # a stage ends with its merging
    *[(f"layers.{i}.blocks",     f"stages.{i}") for i in range(4)],
    *[(f"layers.{i}.downsample", f"merges.{i}") for i in range(3)],
    *SWIN_BLOCK,
]  # fmt: skip

SWIN_TIMM: Rules = [  # a stage begins with its merging
    *[(f"layers.{i}.blocks",         f"stages.{i}") for i in range(4)],
    *[(f"layers.{i + 1}.downsample", f"merges.{i}") for i in range(3)],
    *SWIN_BLOCK,
]  # fmt: skip

SWIN_TRANSFORMERS: Rules = [  # query, key and value are joined to qkv first
    ("embeddings.patch_embeddings.projection", "patch_embed"),
    ("embeddings.norm",                        "patch_norm"),
    *[(f"encoder.layers.{i}.blocks",     f"stages.{i}") for i in range(4)],
    *[(f"encoder.layers.{i}.downsample", f"merges.{i}") for i in range(3)],
    ("layernorm_before",                                "norm1"),
    ("attention.self.qkv",                              "attention.qkv"),
    ("attention.self.relative_position_bias_table",     "attention.bias_table"),
    ("attention.self.relative_position_index",          "attention.positions"),
    ("attention.output.dense",                          "attention.proj"),
    ("layernorm_after",                                 "norm2"),
    ("intermediate.dense",                              "mlp.0"),
    ("output.dense",                                    "mlp.2"),
]  # fmt: skip

CLIP_TRANSFORMERS: Rules = [
    ("embeddings.class_embedding",           "class_token"),
    ("embeddings.patch_embedding",           "patch_embed"),
    ("embeddings.position_embedding.weight", "positions"),
    ("pre_layrnorm",                         "norm_in"),  # their spelling
    ("encoder.layers",                       "blocks"),
    ("self_attn.q_proj",                     "attention.to_q"),
    ("self_attn.k_proj",                     "attention.to_k"),
    ("self_attn.v_proj",                     "attention.to_v"),
    ("self_attn.out_proj",                   "attention.to_out"),
    ("layer_norm1",                          "norm1"),
    ("layer_norm2",                          "norm2"),
    ("mlp.fc1",                              "mlp.0"),
    ("mlp.fc2",                              "mlp.2"),
    ("post_layernorm",                       "norm_out"),
]  # fmt: skip

PRD_OFFICIAL: Rules = [  # the cross-attention, although it comes first, is their second; each norm goes with its number
    ("query_feat",    "queries"),
    ("pos_embed",     "query_positions"),
    ("kv_pos_embed",  "source_positions"),
    ("norm2",         "norm1"),
    ("norm1",         "norm2"),
    *TRANSFORMER,
]  # fmt: skip

HGA_OFFICIAL: Rules = [  # branches are numbered from the finest
    *[(f"blocks.{8 - i}",         f"levels.{i // 3}.{i % 3}.blocks") for i in range(9)],
    *[(f"zero_conv_ins.{8 - i}",  f"levels.{i // 3}.{i % 3}.conv_in") for i in range(9)],
    *[(f"zero_conv_outs.{8 - i}", f"levels.{i // 3}.{i % 3}.conv_out") for i in range(9)],
    ("attn1",         "attention1"),
    ("attn2",         "attention2"),
    *LAYERS,
]  # fmt: skip

ADAPTER_OFFICIAL: Rules = [
    ("conv_shortcut", "shortcut"),
]  # fmt: skip


# Layouts. ------------------------------------------------------------------------------------------------------------

RECOMPUTED = "cfld.swin computes it from the window"
LDM_REST = [
    (r"cond_stage_model\.", "the text encoder: CFLD's prompt comes from the PRD"),
    (r"model_ema\.", "averages that no released picture was made with"),
    (r"[^.]*(alphas|betas|posterior)[^.]*$", "cfld.scheduler computes it"),
]
SWIN_REST = [
    (r".*relative_position_index$", RECOMPUTED),
    (r".*attn_mask$", RECOMPUTED),
    (r"(norm|swin\.layernorm)\.(weight|bias)$", "CFLD takes the last map without a norm"),
    (r"(head|head\.fc|classifier)\.(weight|bias)$", "the ImageNet classifier"),
]
CLIP_REST = [
    (r"(text_model\.|text_projection|logit_scale$)", "CLIP's text encoder"),
    (r"visual_projection", "B2 takes the pooled output before it"),
    (r"vision_model\.embeddings\.position_ids$", "0, 1, 2, ..."),
]


@dataclass(frozen=True)
class Layout:
    """How one public file names a component."""

    component: str  # what it holds: UNet, VAE, Swin, CLIPImageEncoder or CFLD (all but UNet and VAE)
    name: str
    signature: str  # a tensor that only this layout has
    parts: Sequence[tuple[str, str, Rules]]  # their prefix, our prefix, the rules between
    dropped: Sequence[tuple[str, str]] = ()  # pattern of their names, reason

    def ours(self, name: str) -> str | None:
        """Our name of their tensor, or None if no part of this layout holds it."""
        for their_prefix, our_prefix, rules in self.parts:
            if name.startswith(their_prefix):
                return our_prefix + rename(name.removeprefix(their_prefix), dict(rules))
        return None

    def theirs(self, name: str) -> str:
        """Their name of our tensor."""
        for their_prefix, our_prefix, rules in self.parts:
            if name.startswith(our_prefix):
                return their_prefix + rename(name.removeprefix(our_prefix), {ours: theirs for theirs, ours in rules})
        raise KeyError(name)


LAYOUTS = [
    Layout("UNet", "diffusers", "down_blocks.0.resnets.0.time_emb_proj.weight", [("", "", UNET_DIFFUSERS)]),
    Layout("UNet", "official CFLD", "model.down_blocks.0.resnets.0.time_emb_proj.weight",
           [("model.", "", UNET_DIFFUSERS)]),
    Layout("UNet", "LDM single file", "model.diffusion_model.input_blocks.0.0.weight",
           [("model.diffusion_model.", "", UNET_LDM)], [(r"first_stage_model\.", "the VAE, read apart"), *LDM_REST]),
    Layout("VAE", "diffusers", "encoder.mid_block.attentions.0.to_q.weight", [("", "", VAE_DIFFUSERS)]),
    Layout("VAE", "diffusers, old spelling", "encoder.mid_block.attentions.0.query.weight",
           [("", "", VAE_DIFFUSERS_OLD)]),
    Layout("VAE", "LDM", "encoder.mid.attn_1.q.weight", [("", "", VAE_LDM)],
           [(r"loss\.", "the discriminator"), *LDM_REST]),
    Layout("VAE", "LDM single file", "first_stage_model.encoder.mid.attn_1.q.weight",
           [("first_stage_model.", "", VAE_LDM)], [(r"model\.diffusion_model\.", "the UNet, read apart"), *LDM_REST]),
    Layout("Swin", "transformers", "swin.embeddings.patch_embeddings.projection.weight",
           [("swin.", "", SWIN_TRANSFORMERS)], SWIN_REST),
    Layout("Swin", "timm", "layers.3.downsample.norm.weight", [("", "", SWIN_TIMM)], SWIN_REST),
    Layout("Swin", "Microsoft", "layers.0.downsample.norm.weight", [("", "", SWIN_MICROSOFT)], SWIN_REST),
    Layout("CLIPImageEncoder", "transformers", "vision_model.embeddings.class_embedding",
           [("vision_model.", "", CLIP_TRANSFORMERS)], CLIP_REST),
    Layout("CFLD", "official CFLD", "learnable_vector",
           [("backbone.",           "source_encoder.", SWIN_MICROSOFT),
            ("decoder.",            "prd.",            PRD_OFFICIAL),
            ("appearance_encoder.", "hga.",            HGA_OFFICIAL),
            ("pose_encoder.",       "pose_adapter.",   ADAPTER_OFFICIAL),
            ("learnable_vector",    "null_prompt",     [])],
           [(r"backbone\..*relative_position_index$", RECOMPUTED), (r"backbone\..*attn_mask$", RECOMPUTED)]),
]  # fmt: skip


def layout_of(component: str, name: str) -> Layout:
    """The layout of a component by name."""
    return next(layout for layout in LAYOUTS if (layout.component, layout.name) == (component, name))


def rename(name: str, table: Mapping[str, str]) -> str:
    """Translate a tensor's name from left to right, whole parts between dots only; an earlier row of the table wins."""
    if not table:
        return name
    pattern = "|".join(rf"(?<![^.]){re.escape(old)}(?![^.])" for old in table)
    return re.sub(pattern, lambda match: table[match[0]], name)


# Reading. ------------------------------------------------------------------------------------------------------------


def join_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join each ...query, ...key, ...value of transformers' Swin to ...qkv: three (D, C) -> (3D, C)."""
    joined = dict(tensors)
    for name in tensors:
        if ".self.query." in name:
            parts = [joined.pop(name.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
            joined[name.replace(".query.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    return joined


def to_ours(tensors: dict[str, Tensor], component: str, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a component in a public file under our names, whatever its layout; a name that no rule explains is
    kept, for assign() to complain of. Logs the layout and what was dropped. Raises UserError for another component."""
    matches = [layout for layout in LAYOUTS if layout.signature in tensors]
    layout = next((layout for layout in matches if layout.component == component), None)
    if layout is None:
        known = f"a {matches[0].component} ({matches[0].name} names)" if matches else None
        found = known or f"tensors such as {next(iter(tensors), 'none')}"
        raise UserError(f"{path}: must hold a {component}, found {found}; check which file goes with which option")
    log.info("%s: %s, %s names, %d tensors", path, component, layout.name, len(tensors))
    if layout.component == "Swin" and layout.name == "transformers":
        tensors = join_qkv(tensors)
    result: dict[str, Tensor] = {}
    dropped: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        reason = next((reason for pattern, reason in layout.dropped if re.match(pattern, name)), None)
        ours = layout.ours(name)
        if reason is not None:
            dropped.setdefault(reason, []).append(name)
        else:
            result[ours or name] = tensor
    for reason, names in dropped.items():
        log.info("  dropped %d (%s%s): %s", len(names), names[0], ", ..." if len(names) > 1 else "", reason)
    if layout.component == "VAE" and "LDM" in layout.name:  # its attention is made of 1x1 convolutions
        result = {name: x.flatten(1) if ".mid.1.to_" in name and x.ndim == 4 else x for name, x in result.items()}
    return result


def resize_bias_tables(tensors: dict[str, Tensor], swin: Swin) -> dict[str, Tensor]:
    """Resize each table of relative positions to the module's window: (s*s, heads) -> (S*S, heads), bicubic."""
    resized = dict(tensors)
    for name, parameter in swin.named_parameters():
        table = tensors.get(name)
        if not name.endswith("bias_table") or table is None or table.shape == parameter.shape or table.ndim != 2:
            continue
        old, new = round(len(table) ** 0.5), round(len(parameter) ** 0.5)
        grid = table.float().T.reshape(1, -1, old, old)
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        resized[name] = grid.reshape(-1, new * new).T.to(table.dtype)
    return resized


def load_unet(path: str | Path, config: UNetConfig = UNetConfig(), dtype: torch.dtype = torch.float32) -> UNet:
    """A UNet from any public layout. Raises UserError unless the file holds exactly this UNet."""
    with torch.device("meta"):
        unet = UNet(config)
    assign(unet, to_ours(read_tensors(path), "UNet", path), path, dtype)
    return unet


def load_vae(path: str | Path, config: VAEConfig = VAEConfig(), dtype: torch.dtype = torch.float32) -> VAE:
    """A VAE from any public layout. Raises UserError unless the file holds exactly this VAE."""
    with torch.device("meta"):
        vae = VAE(config)
    assign(vae, to_ours(read_tensors(path), "VAE", path), path, dtype)
    return vae


def load_swin(path: str | Path, config: SwinConfig = SwinConfig(), dtype: torch.dtype = torch.float32) -> Swin:
    """A Swin from any public layout, its bias tables resized to the config's windows. Raises UserError if not."""
    with torch.device("meta"):
        swin = Swin(config)
    assign(swin, resize_bias_tables(to_ours(read_tensors(path), "Swin", path), swin), path, dtype)
    return swin


def load_clip(
    path: str | Path, config: CLIPConfig = CLIPConfig(), dtype: torch.dtype = torch.float32
) -> CLIPImageEncoder:
    """CLIP's image encoder from transformers' file. Raises UserError unless the file holds exactly this one."""
    with torch.device("meta"):
        clip = CLIPImageEncoder(config)
    assign(clip, to_ours(read_tensors(path), "CLIPImageEncoder", path), path, dtype)
    return clip


def load_official(
    model_path: str | Path, unet_path: str | Path, config: CFLDConfig = SD15, dtype: torch.dtype = torch.float32
) -> CFLD:
    """The whole model from the two files of an official checkpoint. Raises UserError unless they fit the config."""
    with torch.device("meta"):
        model = CFLD(config)
    tensors = to_ours(read_tensors(model_path), "CFLD", model_path)
    unet_tensors = to_ours(read_tensors(unet_path), "UNet", unet_path)
    tensors |= {f"unet.{name}": tensor for name, tensor in unet_tensors.items()}
    assign(model, tensors, f"{model_path} with {unet_path}", dtype)
    model.freeze()
    return model


# Writing. ------------------------------------------------------------------------------------------------------------


def in_layout(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """A component's parameters and buffers under a public layout's names. CFLD is written without its UNet."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {layout.theirs(name): tensor for name, tensor in tensors.items() if not name.startswith("unet.")}


def export_official(model: CFLD, folder: Path) -> None:
    """Write the two files of the official checkpoint, as safetensors. Raises UserError for a baseline of Table 3."""
    if not model.config.whole:
        raise UserError(
            f"the official layout is of the whole method alone, found prompt {model.config.prompt!r} and biases "
            f"{model.config.biases}; --to diffusers writes the UNet and the VAE of any model"
        )
    write_tensors(folder / "pytorch_model.safetensors", in_layout(model, layout_of("CFLD", "official CFLD")))
    write_tensors(folder / "pytorch_model_1.safetensors", in_layout(model.unet, layout_of("UNet", "official CFLD")))


def export_diffusers(model: CFLD, vae: VAE, folder: Path) -> None:
    """Write unet/ and vae/ as diffusers' from_pretrained reads them."""
    unet_config, vae_config = model.config.unet, vae.config
    attended = len(unet_config.channels) - 1
    configs = {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": model.config.image_size // vae_config.factor,
            "in_channels": unet_config.latent_channels,
            "out_channels": unet_config.latent_channels,
            "block_out_channels": unet_config.channels,
            "layers_per_block": unet_config.depth,
            "down_block_types": ["CrossAttnDownBlock2D"] * attended + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attended,
            "attention_head_dim": unet_config.num_heads,
            "cross_attention_dim": unet_config.context_width,
            "norm_num_groups": unet_config.groups,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "sample_size": model.config.image_size,
            "block_out_channels": vae_config.channels,
            "layers_per_block": vae_config.depth,
            "latent_channels": vae_config.latent_channels,
            "down_block_types": ["DownEncoderBlock2D"] * len(vae_config.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae_config.channels),
            "norm_num_groups": vae_config.groups,
            "scaling_factor": vae_config.scale,
        },
    }
    modules: dict[str, nn.Module] = {"unet": model.unet, "vae": vae}
    for part, layout in (("unet", layout_of("UNet", "diffusers")), ("vae", layout_of("VAE", "diffusers"))):
        write_tensors(
            folder / part / "diffusion_pytorch_model.safetensors", in_layout(modules[part], layout), {"format": "pt"}
        )
        write_json(folder / part / "config.json", configs[part])


# Commands. -----------------------------------------------------------------------------------------------------------


def init(options: argparse.Namespace) -> None:
    """Public UNet, VAE and Swin (or CLIP), and fresh PRD, HGA, pose adapter and unconditional prompt."""
    config = read_config(options.config) if options.config else SD15
    if options.ablation:
        config = ablation(config, options.ablation)
    unet_path, vae_path = options.unet or options.sd, options.vae or options.sd
    if unet_path is None or vae_path is None:
        raise UserError(
            "a UNet and a VAE are needed: give --unet and --vae, or --sd for the single file that holds both"
        )
    needed, other = ("clip", "swin") if config.prompt == "clip" else ("swin", "clip")
    if not getattr(options, needed) or getattr(options, other):
        raise UserError(
            f"a model of prompt {config.prompt} needs --{needed} FILE and no --{other}: weights/README.md says where "
            f"the file comes from"
        )
    vae = load_vae(vae_path, config.vae)
    torch.manual_seed(options.seed)
    with torch.device("meta"):
        model = CFLD(config)
    model.unet = load_unet(unet_path, config.unet)
    model.prd = PerceptionRefinedDecoder(config.prd)
    model.hga = HybridGranularityAttention(config.hga)
    model.pose_adapter = PoseAdapter(config.adapter)
    model.null_prompt = nn.Parameter(torch.randn(model.null_prompt.shape))
    source_encoder = load_clip(options.clip, config.clip) if options.clip else load_swin(options.swin, config.swin)
    for name, part in {**substitutes(config), "source_encoder": source_encoder}.items():
        setattr(model, name, part)
    save(options.out, model, vae)


def official(options: argparse.Namespace) -> None:
    """The authors' checkpoint."""
    config = read_config(options.config) if options.config else SD15
    log.info("each norm of the official PRD is taken to go with the attention of its number (norm2: cross-attention)")
    save(options.out, load_official(options.model, options.unet, config), load_vae(options.vae, config.vae))


def checkpoint(options: argparse.Namespace) -> None:
    """What a training has learnt so far (its averages, if it has any), with the frozen rest of what it began with."""
    from cfld.train import TrainConfig, rebuilt, saved_options

    path = Path(options.checkpoint)
    run = path.absolute().parent.parent
    tensors, metadata = read_safetensors(path)
    facts = json.loads(metadata.get("cfld", "{}"))
    if "step" not in facts:
        raise UserError(f"{path} must be a checkpoint of cfld.train, found another safetensors file")
    try:
        settings = TrainConfig(**saved_options(run))
    except TypeError as error:  # of another version
        raise UserError(f"{run}/config.json holds options that cannot be read here ({error})") from None
    if settings.stage in ("vae", "source"):
        raise UserError(
            f"{path}: the folder of --stage {settings.stage} is written, and scaled, when its training ends"
        )
    kind = "averages/" if any(name.startswith("averages/") for name in tensors) else "weights/"
    learnt = {name.removeprefix(kind): x for name, x in tensors.items() if name.startswith(kind)}
    save(options.out, *rebuilt(settings, from_dict(facts["model"]), learnt, facts["base"]))


def export(options: argparse.Namespace) -> None:
    """A model folder under public names."""
    model, vae = load(options.folder)
    with atomic(options.out) as temporary:
        temporary.mkdir()
        if options.to == "official":
            export_official(model, temporary)
        else:
            export_diffusers(model, vae, temporary)


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.convert", __doc__)
    commands = parser.add_subparsers(required=True, metavar="init | official | checkpoint | export")
    config_help = "JSON file of a config with other widths (see a model folder's config.json)"

    sub = commands.add_parser("init", help="a model folder to train from", formatter_class=HelpFormatter)
    sub.add_argument("--unet", metavar="FILE", help="SD 1.5's unet/diffusion_pytorch_model.safetensors")
    sub.add_argument("--vae", metavar="FILE", help="SD 1.5's vae/diffusion_pytorch_model.safetensors or sd-vae-ft-mse")
    sub.add_argument("--sd", metavar="FILE", help="v1-5-pruned-emaonly.safetensors instead of the two")
    sub.add_argument("--swin", metavar="FILE", help="Swin-B, 384 pixels: Microsoft's, timm's or transformers'")
    sub.add_argument("--clip", metavar="FILE", help="for B2 instead of Swin: clip-vit-large-patch14/model.safetensors")
    sub.add_argument("--ablation", choices=ABLATIONS, help="a row of Table 3 instead of the whole method")
    sub.add_argument("--seed", type=parse_seed, default=0, help="seed of the fresh parts")
    sub.set_defaults(run=init)

    sub = commands.add_parser(
        "official", help="a folder to sample from, of the authors' checkpoint", formatter_class=HelpFormatter
    )
    sub.add_argument("--model", metavar="FILE", required=True, help="pytorch_model.bin")
    sub.add_argument("--unet", metavar="FILE", required=True, help="pytorch_model_1.bin")
    sub.add_argument("--vae", metavar="FILE", required=True, help="SD 1.5's VAE")
    sub.set_defaults(run=official)
    for sub in commands.choices.values():
        sub.add_argument("--config", metavar="FILE", help=config_help)
        sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")

    sub = commands.add_parser(
        "checkpoint", help="a model folder of a training's checkpoint", formatter_class=HelpFormatter
    )
    sub.add_argument("checkpoint", metavar="FILE", help="in RUN/checkpoints")
    sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")
    sub.set_defaults(run=checkpoint)

    sub = commands.add_parser(
        "export", help="a model folder under names that other code reads", formatter_class=HelpFormatter
    )
    sub.add_argument("--to", choices=("official", "diffusers"), required=True)
    sub.add_argument("folder", metavar="DIR", help="a model folder")
    sub.add_argument("out", metavar="OUT", help="the folder to make")
    sub.set_defaults(run=export)

    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if Path(options.out).exists():
        raise UserError(f"{options.out} already exists: choose another --out or remove it first")
    options.run(options)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
