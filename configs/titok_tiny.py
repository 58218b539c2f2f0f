"""titok_tiny.photos, the bundled release: photographs of 64 px as 64 tokens of 12 bits.

    zoo train titok_tiny --data.path PHOTOS --data.eval_path OTHER_PHOTOS --workdir runs/titok_tiny

What was tried, in dB of PSNR on training crops before quantization; one short run each, one seed:
- Muon instead of AdamW: with the published settings a model of this width was at the mean image (12.5) for 250 steps.
- The start of `narrow`, before its positions were doubled, with a warm-up of 15 steps: 18.8 after 125 steps of 24
  crops; fan-in weights alone with a warm-up of 50: 14.3.
- Small batches: 20.3 after 200 steps of 12 crops, 18.8 after 125 steps of 24, which take as long.
- Codes of 8 channels: 20.1 on photos never seen, quantized, after 1,000 steps; 12 channels 19.7, but that run stayed at
  a rate of 2e-2 until step 912, the other until 315, so that the two causes are not apart.
The first 600 steps leave the latents unquantized; a codebook trained from the start collapsed to one code per position.
With a commitment weight of 0.25 the perplexity fell from 2,700 to 510 codes in 140 steps; 0.02 with restarts of unused
codes holds it above 2,000.

The bundled weights ran these 3,500 steps in 55 minutes on 2 shared CPU cores (1.3 s a step on one core, 0.7 s on two),
the first 315 at a rate of 2e-2. They reach 21.1 dB on 28 photos of sources they never saw, a thumbnail of equal bits
18.7 dB; on the 303 training photos 24.2 and 20.9 dB.
"""

from zoo import presets
from zoo.data.loader import DataConfig
from zoo.optim import Optimizer
from zoo.recipes.reconstruction import Reconstruction
from zoo.train import TrainConfig


def get_config() -> TrainConfig:
    model = presets.get("titok_tiny.photos").config
    return TrainConfig(
        recipe=Reconstruction(model=model, commitment=0.02, autoencode_steps=600, restart_every=100),
        data=DataConfig(batch_size=16, scale=(1.0, 1.6), diversify=True),
        optim=Optimizer(
            name="muon", lr=8e-3, adam_share=0.2, end_lr=2e-4, warmup=15, betas=(0.9, 0.99), weight_decay=0.01
        ),
        steps=3500,
        ema=0.998,
        log_every=50,
        save_every=250,
        picture_every=500,
    )
