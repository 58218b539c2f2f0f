"""Names of the networks that training needs beside a tokenizer, under those of bytedance/1d-tokenizer @ 942a96f."""

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
