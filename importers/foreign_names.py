"""The names that timm, Hugging Face transformers and authors give to torchvision's networks.

A family is here if its networks compute the same in both projects wherever keys and shapes are the
same; a `caution` tells what is excepted. timm's EfficientNet and MobileNetV3 are not here:
`tf_efficientnet_b0`, which pads in another way, has the keys and shapes of `efficientnet_b0`.
"""

from importers.naming import Naming, Rule

__all__ = ["CONVNEXT", "MOBILENET_V2", "REGNET", "RESNET", "SWIN", "UNREAD", "VGG", "VIT"]

_TIMM = "timm's"
_HUGGING_FACE = "those of Hugging Face transformers"

VIT = (
    Naming(
        _TIMM,
        stem="patch_embed.proj.weight",
        mark=r"pos_embed",
        rules=(
            (r"^cls_token$", "class_token"),
            (r"^pos_embed$", "encoder.pos_embedding"),
            (r"^patch_embed\.proj\.", "conv_proj."),
            (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
            (r"\.norm([12])\.", r".ln_\1."),
            (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
            (r"\.attn\.proj\.", ".self_attention.out_proj."),
            (r"\.mlp\.fc1\.", ".mlp.0."),
            (r"\.mlp\.fc2\.", ".mlp.3."),
            (r"^norm\.", "encoder.ln."),
            (r"^head\.", "heads.head."),
        ),
    ),
    # Their norms have an epsilon of 1e-12, torchvision's and the original's of 1e-6. Logits agree.
    Naming(
        _HUGGING_FACE,
        stem="vit.embeddings.patch_embeddings.projection.weight",
        mark=r"embeddings\.position_embeddings",
        rules=(
            (r"^vit\.", ""),
            (r"^embeddings\.cls_token$", "class_token"),
            (r"^embeddings\.position_embeddings$", "encoder.pos_embedding"),
            (r"^embeddings\.patch_embeddings\.projection\.", "conv_proj."),
            # Modules in memory have other names than files: `layers.0.attention.q_proj`.
            (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
            (r"\.layernorm_before\.", ".ln_1."),
            (r"\.layernorm_after\.", ".ln_2."),
            (
                r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.(\w+)$",
                r".self_attention.in_proj_\2.\1",
            ),
            (r"\.attention\.(?:output\.dense|o_proj)\.", ".self_attention.out_proj."),
            (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.0."),
            (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.3."),
            (r"^layernorm\.", "encoder.ln."),
            (r"^classifier\.", "heads.head."),
        ),
        left_out=r"^pooler\.",  # reads the class token for other tasks
    ),
)

_CONVNEXT_BLOCK: tuple[Rule, ...] = (
    (r"\.(?:conv_dw|dwconv)\.", ".block.0."),
    (r"(\.\d+\.\d+)\.(?:norm|layernorm)\.", r"\1.block.2."),
    (r"\.(?:mlp\.fc1|pwconv1)\.", ".block.3."),
    (r"\.(?:mlp\.fc2|pwconv2)\.", ".block.5."),
    (r"\.(?:gamma|layer_scale_parameter)$", ".layer_scale"),
)
_LAYER_SCALE = ((r"\.layer_scale$", (1, 1)),)

CONVNEXT = (
    Naming(
        _TIMM,
        stem="stem.0.weight",
        mark=r"stages\.0\.blocks\.0\.conv_dw\.weight",
        rules=(
            (r"^stem\.", "features.0."),
            (r"^stages\.(\d)\.downsample\.", lambda m: f"features.{2 * int(m[1])}."),
            (r"^stages\.(\d)\.blocks\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
            *_CONVNEXT_BLOCK,
            (r"^head\.norm\.", "classifier.0."),
            (r"^head\.fc\.", "classifier.2."),
        ),
        tails=_LAYER_SCALE,
    ),
    Naming(
        "those of ConvNeXt's authors",
        stem="downsample_layers.0.0.weight",
        rules=(
            (r"^downsample_layers\.(\d)\.", lambda m: f"features.{2 * int(m[1])}."),
            (r"^stages\.(\d)\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
            *_CONVNEXT_BLOCK,
            (r"^norm\.", "classifier.0."),
            (r"^head\.", "classifier.2."),
        ),
        tails=_LAYER_SCALE,
    ),
    Naming(
        _HUGGING_FACE,
        stem="convnext.embeddings.patch_embeddings.weight",
        mark=r"embeddings\.patch_embeddings\.weight",
        rules=(
            (r"^convnext\.", ""),
            (r"^classifier\.", "classifier.2."),
            (r"^embeddings\.patch_embeddings\.", "features.0.0."),
            (r"^embeddings\.layernorm\.", "features.0.1."),
            (
                r"^encoder\.stages\.(\d)\.downsampling_layer\.",
                lambda m: f"features.{2 * int(m[1])}.",
            ),
            (r"^encoder\.stages\.(\d)\.layers\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
            *_CONVNEXT_BLOCK,
            (r"^layernorm\.", "classifier.0."),
        ),
        tails=_LAYER_SCALE,
    ),
)

RESNET = (  # timm's are torchvision's
    Naming(
        _HUGGING_FACE,
        stem="resnet.embedder.embedder.convolution.weight",
        mark=r"embedder\.embedder\.convolution\.weight",
        rules=(
            (r"^resnet\.", ""),
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            (r"^encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
            (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
            (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            (r"^classifier\.1\.", "fc."),
        ),
        # ResNet 1.5 strides in the 3x3 convolution. Version 1 has the same keys and shapes.
        caution="They are read as of a network with downsample_in_bottleneck=False, the default.",
    ),
)

REGNET = (
    Naming(
        _TIMM,
        stem="stem.conv.weight",
        rules=(
            (r"^s(\d)\.", r"trunk_output.block\1.block\1-"),
            (r"-b(\d+)\.", lambda m: f"-{int(m[1]) - 1}."),
            (r"\.conv1\.", ".f.a."),
            (r"\.conv2\.", ".f.b."),
            (r"\.conv3\.", ".f.c."),
            (r"\.se\.", ".f.se."),
            (r"\.downsample\.", ".proj."),
            (r"^(.+)\.conv\.", r"\1.0."),
            (r"^(.+)\.bn\.", r"\1.1."),
            (r"^head\.fc\.", "fc."),
        ),
    ),
)

VGG = (
    Naming(
        _TIMM,
        stem="features.0.weight",
        mark=r"pre_logits\.fc1\.weight",
        rules=(
            (r"^pre_logits\.fc1\.", "classifier.0."),
            (r"^pre_logits\.fc2\.", "classifier.3."),
            (r"^head\.fc\.", "classifier.6."),
        ),
        tails=((r"^classifier\.[03]\.weight$", (-1,)),),  # kernels [O, I, H, W] there
        caution="Above 224 pixels a side timm's network pools in another way.",
    ),
)

_FIRST_OF_STAGE = (1, 2, 4, 7, 11, 14, 17)  # the place of its first block in `features`

MOBILENET_V2 = (
    Naming(
        _TIMM,
        stem="conv_stem.weight",
        rules=(
            (r"^conv_stem\.", "features.0.0."),
            (r"^bn1\.", "features.0.1."),
            (r"^conv_head\.", "features.18.0."),
            (r"^bn2\.", "features.18.1."),
            (r"^classifier\.", "classifier.1."),
            # The first block has no expansion.
            (r"^blocks\.0\.0\.conv_dw\.", "features.1.conv.0.0."),
            (r"^blocks\.0\.0\.bn1\.", "features.1.conv.0.1."),
            (r"^blocks\.0\.0\.conv_pw\.", "features.1.conv.1."),
            (r"^blocks\.0\.0\.bn2\.", "features.1.conv.2."),
            (
                r"^blocks\.([0-6])\.(\d)\.",
                lambda m: f"features.{_FIRST_OF_STAGE[int(m[1])] + int(m[2])}.",
            ),
            (r"\.conv_pw\.", ".conv.0.0."),
            (r"\.bn1\.", ".conv.0.1."),
            (r"\.conv_dw\.", ".conv.1.0."),
            (r"\.bn2\.", ".conv.1.1."),
            (r"\.conv_pwl\.", ".conv.2."),
            (r"\.bn3\.", ".conv.3."),
        ),
    ),
)

_SWIN_REST: tuple[Rule, ...] = (
    (r"^patch_embed\.proj\.", "features.0.0."),
    (r"^patch_embed\.norm\.", "features.0.2."),
    (r"^layers\.(\d)\.blocks\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)
_SWIN_CONSTANTS = r"\.(?:relative_position_index|attn_mask)$"

SWIN = (
    Naming(
        _TIMM,
        stem="patch_embed.proj.weight",
        mark=r"layers\.3\.downsample\.reduction\.weight",
        rules=(
            # A stage begins with the downsampling.
            (r"^layers\.(\d)\.downsample\.", lambda m: f"features.{2 * int(m[1])}."),
            *_SWIN_REST,
            (r"^head\.fc\.", "head."),
        ),
        left_out=_SWIN_CONSTANTS,
    ),
    Naming(
        "those of Swin's authors",
        stem="patch_embed.proj.weight",
        mark=r"(?<!encoder\.)layers\.0\.downsample\.reduction\.weight",
        rules=(
            # A stage ends with the downsampling.
            (r"^layers\.(\d)\.downsample\.", lambda m: f"features.{2 * int(m[1]) + 2}."),
            *_SWIN_REST,
        ),
        left_out=_SWIN_CONSTANTS,
    ),
)

UNREAD = (
    (
        r"(?:^|\.)conv_stem\.weight$",
        "timm's, where networks that pad or normalize in other ways have the same keys",
    ),
    (r"(?:^|\.)(?:patch_embed\.proj\.weight|stages\.0\.blocks\.0\..+)$", _TIMM),
    (r"(?:^|\.)(?:embedder|embeddings)\.(?:embedder|patch_embeddings)\..*weight$", _HUGGING_FACE),
    (r"(?:^|\.)encoder\.(?:stages|layers?|blocks)\.\d+\.", _HUGGING_FACE),
)
"""Pairs of a regular expression for keys, and whose they are where no table above fits."""
