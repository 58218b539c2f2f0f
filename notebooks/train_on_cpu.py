# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tokenizer for your own images, in ten minutes on two CPU cores
#
# Give a folder of images. The small tokenizer that comes with the package is trained further on them, the curves show
# how that went, and images that it never saw show what it was worth. A second, shorter run trains a model of your own
# sizes from scratch. No accelerator and no download is needed.

# %%
try:
    import zoo
except ImportError:
    # %pip install -q tokenizer-zoo
    import zoo

# %%
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from zoo.data.loader import eval_batches, open_sources, train_batches
from zoo.errors import InputError
from zoo.evaluate import evaluate
from zoo.launch import read_config
from zoo.metrics.image import psnr
from zoo.pictures import thumbnail, to_uint8
from zoo.train import train

set_matplotlib_formats("jpeg")  # keeps this file small
jax.config.update("jax_compilation_cache_dir", "compiled")  # what was compiled once is not compiled again

# %% [markdown]
# ## What you set
#
# `PHOTOS` is a folder of PNG, JPEG or WebP images of any size; its subfolders are searched too. As it is here, the
# photos of the package stand in for yours. `STEPS` decides how long it takes: with 850, the main run took 607 seconds
# on two cores with little else to do. Each run below prints its own time.

# %%
PHOTOS = "bundled"  # or "path/to/my/images"
HELD_OUT = 0.2  # share of the images that only measure; 0.05 is enough for a thousand images
START = "titok_tiny.photos"  # the release to start from
STEPS = int(os.environ.get("ZOO_NOTEBOOK_STEPS", 850))

# %% [markdown]
# ## The images
#
# `configs/titok_tiny.py` is how the bundled release was made. The runs below start from that config and change what has
# to differ; `replace` copies it with some values changed.

# %%
shipped = read_config("titok_tiny")
size = shipped.recipe.model.image_size
data = replace(shipped.data, path=PHOTOS, holdout=HELD_OUT, image_size=size)
training, heldout = open_sources(data)

sides, unreadable = [], []
for images in (training, heldout):
    for i in range(len(images)):
        try:
            sides.append(min(images[i]["image"].shape[:2]))
        except InputError as error:
            unreadable.append(str(error))
print(f"{len(training)} images to train on, {len(heldout)} held out; not readable: {unreadable or 'none'}")
print(f"shorter side: {min(sides)} to {max(sides)} pixels; the model sees {size}, smaller images are enlarged")

# %% [markdown]
# A batch as the training sees it: random squares, mirrored, at a random scale. `diversify` also turns them and changes
# their colours, which helps where there are few images. With some thousands of them, set it to `False`.


# %%
def show(rows, titles=None, scale=1.5):
    """Rows of pictures; titles in the same order, "" for none."""
    figure, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=(scale * len(rows[0]), scale * len(rows)), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axes_row, row in zip(axes, rows, strict=True):
        for axis, image in zip(axes_row, row, strict=True):
            axis.imshow(image, interpolation="bicubic")
    for axis, title in zip(axes.flat, np.ravel(titles or []), strict=False):
        axis.set_title(title, fontsize=8)
    plt.show()


batches = train_batches(training, data)
batch = next(batches)["image"]
batches.close()
show([batch[:8], batch[8:16]], scale=1.1)

# %% [markdown]
# ## Before
#
# What the release does with the held-out images, before it has seen any of yours. The thumbnail is the plainest way to
# spend at most as many bits: the image shrunk to a few RGB pixels and enlarged again. PSNR says how close a picture is
# to the original; higher is better, and half the squared error is 3 dB.

# %%
start = zoo.load(START)
before = evaluate(start, heldout)
print(start)
print(f"held-out images: {before['psnr']:.2f} dB, thumbnails of equal bits {before['thumbnail_psnr']:.2f} dB")

# %% [markdown]
# ## The run
#
# Two things can be trained: a release further, or a fresh model. Ten minutes on two cores are about a fifth of what the
# release has had, so starting from it gives the better tokenizer. That is the main run.
#
# - **Model**: that of the release, because its weights have to fit.
# - **Batch**: 16 crops. On a CPU many small steps learn more in a minute than few large ones.
# - **Rate**: below the one that the release began with, or it forgets what it knows; then down along a cosine.
# - **Codebook**: codes that nothing chose for a while start again from a latent of a batch, so that codes which your
#   images do not need come back into use.
# - **Averaging**: the release is a running average of the weights over about the last 200 steps.

# %%
every = max(1, STEPS // 40)  # steps from one point of the curves to the next
config = replace(
    shipped,
    init=START,
    data=data,
    recipe=replace(shipped.recipe, restart_every=4 * every),
    optim=replace(shipped.optim, lr=3e-3, end_lr=1e-4),
    steps=STEPS,
    ema=0.995,
    log_every=every,
    save_every=4 * every,
    picture_every=0,
)


# %%
def run(config, folder):
    """Trains in `folder`, or goes on there, and returns the metrics on the held-out images."""
    began, busy = time.perf_counter(), time.process_time()
    metrics = train(config, folder)
    minutes, of_cores = (time.perf_counter() - began) / 60, (time.process_time() - busy) / 60
    print(f"step {config.steps}, {minutes:.1f} minutes, {of_cores:.1f} of processor time on {os.cpu_count()} cores")
    print(f"held-out images: {metrics['psnr']:.2f} dB")
    return metrics


after = run(config, "my_tokenizer")

# %% [markdown]
# If the kernel dies or you press stop, run the same cell again: it goes on from the newest checkpoint in the folder,
# and `STEPS` may be larger then. The folder's checkpoints, by step:

# %%
sorted(int(path.name) for path in Path("my_tokenizer/checkpoints").iterdir() if path.name.isdigit())

# %% [markdown]
# This run is complete, so that the same call takes no step and only measures again.

# %%
again = run(config, "my_tokenizer")
print(f"the same metrics: {again == after}")

# %% [markdown]
# ## The curves
#
# Each line of `my_tokenizer/metrics.jsonl` holds the numbers of one step. A single batch is noisy: look at the trend.
# The PSNR is that of training crops. Their changed colours make them harder than the held-out images, so the dotted
# lines, which are those before and after, need not meet the curve. Codes are counted since the line before; the last
# point covers fewer steps, so that fewer codes had their turn.


# %%
def read_log(folder):
    """The numbers of a run, name -> values; "step" is one of the names."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    lines = list({line["step"]: line for line in lines}.values())  # steps taken again after a stop have two lines
    return {name: [line[name] for line in lines] for name in lines[0]}


def curves(log, title):
    """Axes with loss, PSNR, codes and rate over the steps."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex=True)
    for axis, name in zip(axes.flat, ("loss", "psnr", "perplexity", "lr"), strict=True):
        axis.plot(log["step"], log[name], marker=".", color="tab:blue")
        axis.grid(alpha=0.25)
    axes[0, 0].set(ylabel="loss of a batch", yscale="log")
    axes[0, 1].set(ylabel="PSNR of a batch, dB")
    axes[1, 0].set(xlabel="step", ylabel="perplexity of the codes")
    axes[1, 1].set(xlabel="step", ylabel="learning rate")
    figure.suptitle(title)
    return axes


log = read_log("my_tokenizer")
axes = curves(log, "fine-tuned")
axes[0, 1].axhline(before["psnr"], color="grey", linestyle=":", label="held out, before")
axes[0, 1].axhline(after["psnr"], color="tab:green", linestyle=":", label="held out, after")
axes[0, 1].legend(fontsize=8)
plt.show()
print(f"codes in use at the end: {log['usage'][-1]:.0%} of {start.spec.vocab_size:,}")
print(f"images a second: {np.median(log['images_per_second']):.0f}")

# %% [markdown]
# ## After
#
# The result is a release folder and loads like any other model. These images were never trained on.

# %%
mine = zoo.load("my_tokenizer/release")
names, images = next(eval_batches(heldout, size, 6, {}))
small = np.stack([thumbnail(image, mine.spec.bits_per_item())[0] for image in images])


def rebuild(tokenizer):
    """The images from their ids, uint8."""
    return to_uint8(tokenizer.decode(tokenizer.encode(images)))


rows = {"thumbnail": small, "before": rebuild(start), "after": rebuild(mine)}
titles = [Path(name).stem[:16] for name in names]
for name, pictures in rows.items():
    titles += [f"{name} {score:.1f} dB" for score in psnr(images, pictures)]
show([images, *rows.values()], titles)
print(f"all {after['n']} held-out images: {before['psnr']:.2f} dB before, {after['psnr']:.2f} dB after")

# %% [markdown]
# The photos of the package are much like those that the release has learned from, so that it has little left to learn
# from eighteen of them: the gain is a fraction of a decibel and hard to see. What 64 ids cannot hold stays blurred. If
# the row "before" is poor with images of your own, there is more to gain.

# %% [markdown]
# ## From scratch, with sizes of your own
#
# Any size can be changed; then there are no weights to start from. The next sizes make a model that is fast on a CPU.
# Expect less of it: as many steps bring it past the thumbnail, and not to the release.

# %%
model = shipped.recipe.model
model = replace(
    model,
    image_size=64,  # pixels; twice the side is four times the patches
    tokens=64,  # ids per image: more keep more detail, and make longer sequences for the model that reads them
    vocab_size=1024,  # codes, so 10 bits per id; a large codebook needs many images
    encoder=replace(model.encoder, width=128, heads=2, depth=2),  # width and layers: what it can learn, and the time
    decoder=replace(model.decoder, width=128, heads=2, depth=3),
)
scratch = replace(
    config,
    init=None,
    recipe=replace(config.recipe, model=model, autoencode_steps=STEPS // 5),  # first without ids, or the codes collapse
    optim=shipped.optim,  # a fresh model takes a higher rate
)
fresh = run(scratch, "my_own_sizes")

# %%
axes = curves(read_log("my_own_sizes"), "from scratch")
for axis in axes.flat:
    axis.axvline(STEPS // 5, color="grey", linestyle=":")
axes[0, 1].axhline(fresh["psnr"], color="tab:green", linestyle=":", label="held out, at the end")
axes[0, 1].legend(fontsize=8)
plt.show()

# %% [markdown]
# The grey line is where the ids begin. Both runs side by side, on the same held-out images:

# %%
own = zoo.load("my_own_sizes/release")
rebuilt = rebuild(own)
show([images, rebuilt], titles[: len(images)] + [f"scratch {score:.1f} dB" for score in psnr(images, rebuilt)])
for name, tokenizer, value in (
    ("thumbnail", mine, before["thumbnail_psnr"]),
    ("from scratch", own, fresh["psnr"]),
    (START, start, before["psnr"]),
    ("fine-tuned", mine, after["psnr"]),
):
    print(f"{name:20}{tokenizer.spec.bits_per_item():5,.0f} bits{value:8.2f} dB")

# %% [markdown]
# ## Use it
#
# `my_tokenizer/release` is all that is needed. On the command line, `zoo encode *.jpg --model my_tokenizer/release`
# writes ids to a file, and `zoo decode` draws them again. In Python:

# %%
codes = mine.encode(images)
print(codes.ids.shape, np.asarray(codes.ids[0, :12, 0]))

# %% [markdown]
# ## Where to go next
#
# - More images: eighteen are few, the release had 303.
# - More steps: raise `STEPS`. The release took 3,500, in 55 minutes.
# - Accelerators: with `tokenizer-zoo[cuda13]` or `[tpu]` installed the same call finds them; raise `batch_size`, and
#   set `dtype="bfloat16"` for large models. Not run here.
# - Without a notebook: `zoo train titok_tiny --data.path FOLDER --workdir RUN` trains, `--help` lists every option.
# - Larger models: `configs/` has the published recipes of TiTok and TA-TiTok at full size, with perceptual losses and
#   a discriminator.
# - `zoo compare titok_tiny.photos my_tokenizer/release --data *.jpg --out compared` puts models side by side.
