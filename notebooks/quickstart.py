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
# # A photo as a row of small numbers, and back
#
# An image tokenizer turns a photo into a short row of ids, and the ids into a photo again. A language model can then
# read and write pictures as it reads and writes words. This notebook loads the small tokenizer that comes with the
# package, looks at what its ids do, and trains it a little further. It needs about a minute on two CPU cores.

# %%
try:
    import zoo
except ImportError:
    # %pip install -q tokenizer-zoo
    import zoo

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from zoo.data.sources import open_source
from zoo.data.transforms import eval_transform, read_image, train_transform
from zoo.metrics.image import psnr
from zoo.pictures import thumbnail, to_uint8
from zoo.quantize import usage

set_matplotlib_formats("jpeg")  # keeps this file small

# %% [markdown]
# ## The model
#
# The weights come with the package, so nothing is downloaded. `spec` says what the model takes and gives.

# %%
tok = zoo.load("titok_tiny.photos")
tok

# %%
size, bits = tok.spec.input_shape[0], tok.spec.bits_per_item()
print(f"a photo of {size} x {size} pixels: {24 * size**2:,} bits")
print(f"its {tok.spec.tokens} ids, each one of {tok.spec.vocab_size:,}: {bits:,.0f} bits")

# %% [markdown]
# ## The photos
#
# The package holds a few photos. The model was not trained on them. `eval_transform` scales the shorter side to the
# model's size and cuts out the middle.

# %%
photos = open_source("bundled")
images = np.stack([eval_transform(photos[i]["image"], size) for i in range(len(photos))])


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


show([images[:8], images[8:16], images[16:24]], scale=1.1)

# %% [markdown]
# ## Photos to ids
#
# `encode` takes uint8 images, or float32 in [-1, 1]. The ids have the shape [photo, token, codebook]; this model has
# one codebook. The same photo always gives the same ids.

# %%
codes = tok.encode(images)
codes.ids.shape

# %%
print(photos.names[2])
print(np.asarray(codes.ids[2, :, 0]))

# %% [markdown]
# ## Ids to photos
#
# `decode` gets the ids and nothing else. The third row is the plainest way to spend the same bits: the photo shrunk to
# a tiny RGB thumbnail and enlarged again. PSNR says how close a picture is to the original; higher is better.

# %%
rebuilt = to_uint8(tok.decode(codes))
small = np.stack([thumbnail(image, bits)[0] for image in images])
ours, theirs = psnr(images, rebuilt), psnr(images, small)

some = [2, 3, 4, 18, 22, 9, 23]
titles = [photos.names[i].removesuffix(".jpg") for i in some]
titles += [f"{ours[i]:.1f} dB" for i in some] + [f"thumbnail {theirs[i]:.1f} dB" for i in some]
show([images[some], rebuilt[some], small[some]], titles)

# %%
print(f"mean over {len(images)} photos: {ours.mean():.2f} dB, thumbnails of equally many bits {theirs.mean():.2f} dB")

# %% [markdown]
# ## How the codebook is used
#
# An id names a code vector in the codebook. Many random cuts of the photos show which codes the model uses, and how
# often. Perplexity is the number of codes that would carry as much information if all were used equally often.

# %%
rng = np.random.default_rng(0)
crops = [train_transform(photos[i % 24]["image"], size, rng, scale=(1, 1.6)) for i in range(8 * 24)]
counts = usage.count_ids(tok.encode(np.stack(crops)).ids, tok.spec.vocab_sizes)

figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
axis.semilogy(np.sort(counts[0])[::-1])
axis.set(xlabel="codes, most frequent first", ylabel="times used", xlim=(0, tok.spec.vocab_size))
plt.show()
used, perplexity = usage.usage(counts, tok.spec.vocab_sizes)[0], usage.perplexity(counts)[0]
print(f"{counts.sum():,} ids, {used:.0%} of the codes seen, perplexity {perplexity:,.0f}")

# %% [markdown]
# ## What one token does
#
# One id of a photo is replaced by the id that another photo has at the same place in its row. Below each result is its
# difference to the picture without the change, three times as strong; grey is no difference.

# %%
photo, other = 2, 4
changed = np.repeat(np.asarray(codes.ids)[[photo]], tok.spec.tokens, axis=0)
which = np.arange(tok.spec.tokens)
changed[which, which] = codes.ids[other]
effects = np.asarray(tok.decode(changed) - tok.decode(codes)[photo])

largest = np.argsort(-np.abs(effects).mean((1, 2, 3)))[:7]
differences = to_uint8(3 * effects[largest])
show([to_uint8(tok.decode(changed))[largest], differences], [f"token {i}" for i in largest])

# %% [markdown]
# These were the seven tokens that changed most. The next plot has all of them. Nothing in the model ties a token to a
# place in the photo: where each one acts was learned.

# %%
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
axis.bar(which, 127.5 * np.abs(effects).mean((1, 2, 3)))
axis.set(xlabel="token", ylabel="mean change, grey levels")
plt.show()

# %% [markdown]
# ## A mix of two photos
#
# The first ids come from one photo, the others from another. `decode` also takes a bare array of ids.

# %%
ids_a, ids_b = np.asarray(codes.ids[photo]), np.asarray(codes.ids[other])
cuts = np.linspace(0, tok.spec.tokens, 8).round().astype(int)
mixes = np.stack([np.concatenate([ids_b[:cut], ids_a[cut:]]) for cut in cuts])
show([to_uint8(tok.decode(mixes))], [f"first {cut} of {tok.spec.tokens}" for cut in cuts])

# %% [markdown]
# ## A photo of your own
#
# Any PNG, JPEG or WebP file of any size. Write its name instead of `None`.

# %%
path = None
image = read_image(path) if path else photos[13]["image"]
square = eval_transform(image, size)
back = to_uint8(tok.decode(tok.encode(square[None])))[0]
titles = [f"{image.shape[1]} x {image.shape[0]} pixels", "what the model sees", "from its ids"]
show([[image, square, back]], titles, scale=2.2)

# %% [markdown]
# ## Weights for the original implementation
#
# `to_reference` gives the weights under the tensor names of the original TiTok, which is written in PyTorch. The way
# back gives the same bits.

# %%
from zoo.convert import from_config, to_reference

weights = to_reference(tok)
for name in list(weights)[:6]:
    print(f"{name:45}{weights[name].shape}")
print(f"... {len(weights)} tensors, {sum(w.size for w in weights.values()):,} parameters")

# %%
again = to_reference(from_config(tok.family, tok.module.config, weights))
all(np.array_equal(again[name], weights[name]) for name in weights)

# %% [markdown]
# ## Train it further
#
# Ten steps on the bundled photos. That is too few to learn much and enough to see how it works. Replace `bundled` by a
# folder of your own images and `10` by a few thousand. The same call on the same folder resumes where a run stopped.

# %%
from zoo.data.loader import DataConfig
from zoo.recipes.reconstruction import Reconstruction
from zoo.train import Optimizer, TrainConfig, train

config = TrainConfig(
    recipe=Reconstruction(model=tok.module.config),
    init="titok_tiny.photos",
    data=DataConfig(path="bundled", batch_size=16, scale=(1.0, 1.6)),
    optim=Optimizer(lr=1e-4, warmup=2),
    steps=10,
    log_every=1,
    picture_every=0,
)
metrics = train(config, "finetuned")

# %% [markdown]
# Each step left a line in `finetuned/metrics.jsonl`. The photos that were held out measured the result.

# %%
lines = [json.loads(line) for line in Path("finetuned/metrics.jsonl").read_text().splitlines()]
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
axis.plot([line["step"] for line in lines], [line["psnr"] for line in lines], marker="o")
axis.set(xlabel="step", ylabel="PSNR of the batch, dB")
plt.show()
{name: round(metrics[name], 2) for name in ("n", "psnr", "thumbnail_psnr", "usage")}

# %% [markdown]
# The result is a release folder, and loads like any other model.

# %%
zoo.load("finetuned/release")

# %% [markdown]
# ## Where to go next
#
# On the command line:
#
# - `zoo list` shows all models, `zoo info MODEL` one of them.
# - `zoo encode *.jpg --out photos.npz` writes the ids of your photos, `zoo decode photos.npz` draws them again.
# - `zoo eval titok_tiny.photos FOLDER --out measured` measures a model on your images.
# - `zoo train smoke/titok --data.path FOLDER --init titok_tiny.photos --optim.lr 1e-4 --steps 2000 --workdir RUN`
#   fine-tunes it, and ends with `RUN/release`.
# - `zoo compare titok_tiny.photos RUN/release --data *.jpg --out compared` puts the two side by side.
