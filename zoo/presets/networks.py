"""Names of the networks that training needs beside a tokenizer, under those of bytedance/1d-tokenizer @ 942a96f."""

from __future__ import annotations

from zoo.nn.vgg import CONVS_PER_STAGE
from zoo.presets.rules import CONV, LINEAR, SAME, Layout, Rule

VGG16_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's `features`
HEAD = Layout(lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])  # [1, c, 1, 1] <-> [c]
SCALE = Layout(lambda x: x[:, 0, 0], lambda x: x[:, None, None])  # [c, 1, 1] <-> [c]


def _pair(reference: str, ours: str, layout: Layout = CONV) -> list[Rule]:
    """Weight and bias of a convolution, a linear layer, or with SAME a norm."""
    weight = "scale" if layout is SAME else "kernel"
    return [Rule(f"{reference}.weight", f"{ours}.{weight}", layout), Rule(f"{reference}.bias", f"{ours}.bias")]


BLUR_DISCRIMINATOR = [
    *_pair("block_in.0", "stem"),
    *_pair("blocks.{i}.0", "stages.{i}.conv"),
    *_pair("blocks.{i}.2", "stages.{i}.norm", SAME),
    *_pair("to_logits.0", "mix"),
    *_pair("to_logits.2", "out"),
]  # blocks.<i>.1.kernel is the fixed blur

SLICES = [stage for stage, count in enumerate(CONVS_PER_STAGE, start=1) for _ in range(count)]
LPIPS = [
    *(
        rule
        for i, (stage, index) in enumerate(zip(SLICES, VGG16_INDICES, strict=True))
        for rule in _pair(f"net.slice{stage}.{index}", f"convs.{i}")
    ),
    Rule("lin{i}.model.1.weight", "heads.{i}", HEAD),
]  # scaling_layer.{shift,scale} are constants

CONVNEXT = [
    *_pair("features.0.0", "stem"),
    *_pair("features.0.1", "norms.0", SAME),
    *(rule for i in range(1, 4) for rule in _pair(f"features.{2 * i}.0", f"norms.{i}", SAME)),
    *(rule for i in range(3) for rule in _pair(f"features.{2 * i + 2}.1", f"shrink.{i}")),
    *(
        rule
        for i in range(4)
        for layer, ours, layout in (
            ("block.0", "depthwise", CONV),
            ("block.2", "norm", SAME),
            ("block.3", "up", LINEAR),
            ("block.5", "down", LINEAR),
        )
        for rule in _pair(f"features.{2 * i + 1}.{{layer}}.{layer}", f"stages.{i}.block.{ours}", layout)
    ),
    *(Rule(f"features.{2 * i + 1}.{{layer}}.layer_scale", f"stages.{i}.block.scale", SCALE) for i in range(4)),
    *_pair("classifier.0", "norm_out", SAME),
    *_pair("classifier.2", "classify", LINEAR),
]
