"""The names of tensors in public files, as tables: theirs on the left, ours on the right.

A table serves both directions. A name is translated at each dot by the first row that fits; a part without a row stays.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Rules = Sequence[tuple[str, str]]
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
UNET_LDM: Rules = [  # blocks are numbered consecutively, three per level of the down path and of the up path
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
PRD_OFFICIAL: Rules = [  # their second attention is the cross-attention, which comes first, and norm2 is before it
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
RECOMPUTED = "cfld.swin computes it from the window"
LDM_REST = [
    (r"cond_stage_model\.", "the text encoder: CFLD's prompt comes from the PRD"),
    (r"model_ema\.", "EMA weights, which made no released image"),
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
    """How one kind of public file names a component."""

    component: str  # what it holds: UNet, VAE, Swin, CLIPImageEncoder or CFLD (all but UNet and VAE)
    name: str
    signature: str  # a tensor that only this layout has
    parts: Sequence[tuple[str, str, Rules]]  # their prefix, our prefix, the rules between
    dropped: Sequence[tuple[str, str]] = ()  # pattern of their names, reason

    def ours(self, name: str) -> str | None:
        """Our name of their tensor; None if it is in no part of this layout."""
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
    """Translate a name from left to right, whole parts between dots only; an earlier row of the table wins."""
    if not table:
        return name
    pattern = "|".join(rf"(?<![^.]){re.escape(old)}(?![^.])" for old in table)
    return re.sub(pattern, lambda match: table[match[0]], name)
