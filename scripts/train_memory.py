"""Memory per device of a TiTok-L train step, from XLA's own analysis; needs no weights and no accelerator.

JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/train_memory.py
"""

import argparse
import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp

from zoo import presets, sharding
from zoo.data.loader import DataConfig
from zoo.recipes.reconstruction import Reconstruction
from zoo.step import Program
from zoo.train import TrainConfig


def compiled(config: TrainConfig, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """The train step for arrays that do not exist."""
    program = Program(config, mesh)
    shape = (config.data.batch_size, config.data.image_size, config.data.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding.batch_sharding(mesh))
    return program.jit_step.lower(program.target, {"image": images}, program.frozen, program.active(None)).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--preset", default="titok_ll32_vae_c16.imagenet", help="of TiTok; its pixel decoder is left out"
    )
    parser.add_argument("--batch", type=int, default=8, help="images per device")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--fsdp", type=int, nargs="+", default=[1, 8], help="devices of 8 that split the state")
    args = parser.parse_args()
    model = dataclasses.replace(presets.get(args.preset).config, pixel_decoder=None)
    print("| mesh (data x fsdp) | dtype | remat | accumulate | arguments, GiB | temporaries, GiB | compile, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for dtype, fsdp, remat, parts in itertools.product(args.dtype, args.fsdp, (False, True), (1, 4)):
        config = TrainConfig(
            recipe=Reconstruction(model=dataclasses.replace(model, remat=remat)),
            data=DataConfig(batch_size=8 * args.batch, image_size=model.image_size),
            steps=1000,
            accumulate=parts,
            dtype=dtype,
        )
        then = time.perf_counter()
        memory = compiled(config, sharding.make_mesh(8 // fsdp, fsdp)).memory_analysis()
        sizes = [f"{size / 2**30:.2f}" for size in (memory.argument_size_in_bytes, memory.temp_size_in_bytes)]
        row = [f"{8 // fsdp} x {fsdp}", dtype, "on" if remat else "off", parts, *sizes]
        print("|", " | ".join(map(str, row)), f"| {time.perf_counter() - then:.0f} |", flush=True)


if __name__ == "__main__":
    main()
