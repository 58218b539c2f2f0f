"""Names of the networks that losses and metrics need beside a tokenizer.

Those of training as in bytedance/1d-tokenizer @ 942a96f, Inception-v3 as in pytorch-fid 0.3.0, EfficientNet-Lite0 as in
efficientnet-lite-pytorch 0.1.0.
"""

from __future__ import annotations

from zoo.nn.vgg import CONVS_PER_STAGE
from zoo.presets.rules import CONV, LINEAR, SAME, Layout, Rule, layer

VGG16_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's `features`
HEAD = Layout(lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])  # [1, c, 1, 1] <-> [c]
SCALE = Layout(lambda x: x[:, 0, 0], lambda x: x[:, None, None])  # [c, 1, 1] <-> [c]

BLUR_DISCRIMINATOR = [
    *layer("block_in.0", "stem", CONV),
    *layer("blocks.{i}.0", "stages.{i}.conv", CONV),
    *layer("blocks.{i}.2", "stages.{i}.norm", SAME),
    *layer("to_logits.0", "mix", CONV),
    *layer("to_logits.2", "out", CONV),
]  # blocks.<i>.1.kernel is the fixed blur

SLICES = [stage for stage, count in enumerate(CONVS_PER_STAGE, start=1) for _ in range(count)]
LPIPS = [
    *(
        rule
        for i, (stage, index) in enumerate(zip(SLICES, VGG16_INDICES, strict=True))
        for rule in layer(f"net.slice{stage}.{index}", f"convs.{i}", CONV)
    ),
    Rule("lin{i}.model.1.weight", "heads.{i}", HEAD),
]  # scaling_layer.{shift,scale} are constants

CONVNEXT = [
    *layer("features.0.0", "stem", CONV),
    *layer("features.0.1", "norms.0", SAME),
    *(rule for i in range(1, 4) for rule in layer(f"features.{2 * i}.0", f"norms.{i}", SAME)),
    *(rule for i in range(3) for rule in layer(f"features.{2 * i + 2}.1", f"shrink.{i}", CONV)),
    *(
        rule
        for i in range(4)
        for part, ours, layout in (
            ("block.0", "depthwise", CONV),
            ("block.2", "norm", SAME),
            ("block.3", "up", LINEAR),
            ("block.5", "down", LINEAR),
        )
        for rule in layer(f"features.{2 * i + 1}.{{layer}}.{part}", f"stages.{i}.block.{ours}", layout)
    ),
    *(Rule(f"features.{2 * i + 1}.{{layer}}.layer_scale", f"stages.{i}.block.scale", SCALE) for i in range(4)),
    *layer("classifier.0", "norm_out", SAME),
    *layer("classifier.2", "classify", LINEAR),
]


def _conv_norm(conv: str, norm: str, ours: str) -> list[Rule]:
    """A convolution with its batch norm."""
    return [
        Rule(f"{conv}.weight", f"{ours}.kernel", CONV),
        *layer(norm, f"{ours}.norm", SAME),
        Rule(f"{norm}.running_mean", f"{ours}.norm.mean"),
        Rule(f"{norm}.running_var", f"{ours}.norm.var"),
    ]  # num_batches_tracked counts training steps


INCEPTION_PLACES = [
    *((f"Mixed_{{path}}.branch3x3_2{'ab'[i]}", f"mixed_{{path}}.branch3x3_split.{i}") for i in range(2)),
    *((f"Mixed_{{path}}.branch3x3dbl_3{'ab'[i]}", f"mixed_{{path}}.branch3x3dbl_split.{i}") for i in range(2)),
    *((f"Mixed_{{path}}_{i + 1}", f"mixed_{{path}}.{i}") for i in range(5)),
    ("Mixed_{path}", "mixed_{path}"),
    ("Conv2d_{path}", "conv_{path}"),
]  # the first that fits is taken
INCEPTION = [
    *(rule for name, ours in INCEPTION_PLACES for rule in _conv_norm(f"{name}.conv", f"{name}.bn", ours)),
    *layer("fc", "fc", LINEAR),
]

EFFICIENTNET_LITE0 = [
    *_conv_norm("_conv_stem", "_bn0", "stem"),
    *_conv_norm("_blocks.{i}._expand_conv", "_blocks.{i}._bn0", "blocks.{i}.expand"),
    *_conv_norm("_blocks.{i}._depthwise_conv", "_blocks.{i}._bn1", "blocks.{i}.depthwise"),
    *_conv_norm("_blocks.{i}._project_conv", "_blocks.{i}._bn2", "blocks.{i}.project"),
    *_conv_norm("_conv_head", "_bn1", "head"),
    *layer("_fc", "classify", LINEAR),
]
