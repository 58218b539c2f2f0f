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
# # Why codebooks collapse, and what helps
#
# A codebook of 64 codes that uses five of them holds 2.3 bits and not 6. Here are points of the plane, an autoencoder
# of two layers on either side, and quantizers in between: you see where the latents lie, which codes are in use, and
# what each cure does. About a minute of processor time; no download.

# %%
try:
    import zoo
except ImportError:
    # %pip install -q tokenizer-zoo
    import zoo

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from zoo.quantize import (
    EMAVQ,
    FSQ,
    LFQ,
    VQ,
    DiVeQ,
    Entropy,
    IndexBackpropagation,
    RotationTrick,
    SimVQ,
    StraightThrough,
)
from zoo.quantize.usage import count_ids, perplexity, usage
from zoo.quantize_study import Settings, fit

set_matplotlib_formats("jpeg")  # keeps this file small
CODES = 64
STEPS = int(os.environ.get("ZOO_NOTEBOOK_STEPS", 1000))
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.75"
print(f"tokenizer-zoo {zoo.__version__}")

# %% [markdown]
# ## The data
#
# A pinwheel of five arms.

# %%
rng = np.random.default_rng(0)
arm = rng.integers(0, 5, 4096)
radius, across = 1 + 0.35 * rng.normal(size=4096), 0.08 * rng.normal(size=4096)
angle = 2 * np.pi / 5 * arm + 0.6 * np.exp(radius) / 2
points = np.stack(
    [radius * np.cos(angle) - across * np.sin(angle), radius * np.sin(angle) + across * np.cos(angle)], -1
)
points = points.astype(np.float32)[:, None]  # [n, t = 1, 2]

# %% [markdown]
# ## Nine runs
#
# `fit` trains encoder, quantizer and decoder in one compiled program. The first five start from the same bad codebook,
# six times as wide as it should be, so that most codes lie where no latent is. The cures are arguments: how the
# codebook starts (`fitted=True` is k-means on the first batch), how it moves, which gradient passes it, or what kind of
# codes it has.

# %%
wide = 6 * jax.random.normal(jax.random.key(1), (CODES, 2))


def bad(quantizer):
    """The quantizer with the bad codebook."""
    quantizer.codebook[...] = wide
    if isinstance(quantizer, EMAVQ):
        quantizer.embed_sum[...] = wide
    return quantizer


def lfq(rngs):
    return LFQ(1, 6, entropy=Entropy(temperature=0.3), rngs=rngs)


learned = {"commitment": 1.0, "codebook": 1.0}
entropies = {"commitment": 0.25, "sample_entropy": 0.2, "codebook_entropy": -0.4}
runs = {
    # name: (quantizer, channels of z, weights of its losses, k-means)
    "plain VQ": (lambda rngs: bad(VQ(CODES, 2, rngs=rngs)), 2, learned, False),
    "k-means start": (lambda rngs: bad(VQ(CODES, 2, rngs=rngs)), 2, learned, True),
    "dead codes replaced": (lambda rngs: bad(EMAVQ(CODES, 2, dead_below=1.0, rngs=rngs)), 2, learned, False),
    "rotation trick alone": (lambda rngs: bad(VQ(CODES, 2, estimator=RotationTrick(), rngs=rngs)), 2, learned, False),
    "IBQ's gradient": (
        lambda rngs: bad(VQ(CODES, 2, estimator=IndexBackpropagation(), rngs=rngs)),
        2,
        learned,
        False,
    ),
    "SimVQ": (lambda rngs: SimVQ(CODES, 2, rngs=rngs), 2, learned, False),
    "FSQ 8 x 8": (lambda rngs: FSQ([8, 8], rngs=rngs), 2, {}, False),
    "LFQ, 6 bits": (lfq, 6, entropies, False),
    "LFQ, no entropies": (lfq, 6, {"commitment": 0.25}, False),
}
models, curves = {}, {}
for name, (make, width, weights, fitted) in runs.items():
    settings = Settings(steps=STEPS, batch=512, rate=3e-3, fitted=fitted)
    models[name], curves[name] = fit(make, points, width=width, weights=weights, settings=settings)


# %%
def look(model, x):
    """Latents, their ids, all codes, what they decode to, and the points rebuilt."""
    z = model.encoder(x)
    out = model.quantizer(z)
    codes = model.quantizer.lookup(jnp.arange(CODES)[:, None])
    return z[:, 0], out.ids[:, 0], codes, model.decoder(codes), model.decoder(out.z)[:, 0]


seen = {name: look(model, points) for name, model in models.items()}
counts = {name: count_ids(ids[:, None], [CODES]) for name, (_, ids, *_) in seen.items()}
for name, (*_, rebuilt) in seen.items():
    used, even = float(usage(counts[name])[0]), float(perplexity(counts[name])[0])
    error = float(np.mean((rebuilt - points[:, 0]) ** 2))
    print(f"{name:22} {used:4.0%} of the codes used, perplexity {even:4.1f}, squared error {error:.4f}")

# %% [markdown]
# ## Where the codes are
#
# Upper rows: latents in grey, codes in use in blue, dead ones as orange crosses. Lower rows: the data, and what each
# code decodes to. LFQ has six channels, so only the second picture can be drawn.


# %%
def draw(axis, cloud, codes, used):
    axis.scatter(*np.asarray(cloud).T, s=1, color=GREY, rasterized=True)
    axis.scatter(*np.asarray(codes)[used].T, s=14, color=BLUE, zorder=3)
    axis.scatter(*np.asarray(codes)[~used].T, s=18, color=ORANGE, marker="x", linewidth=1, zorder=2)
    axis.set(xticks=[], yticks=[])


def gallery(names):
    figure, axes = plt.subplots(2, len(names), figsize=(2.5 * len(names), 5.2), layout="constrained")
    for (above, below), name in zip(axes.T, names, strict=True):
        z, _, codes, decoded, _ = seen[name]
        used = counts[name][0] > 0
        above.set_title(f"{name}\n{used.sum()} of {CODES} codes", fontsize=10)
        draw(above, z, codes, used) if z.shape[-1] == 2 else above.axis("off")
        draw(below, points[:, 0], decoded, used)
    axes[0, 0].set_ylabel("latents")
    axes[1, 0].set_ylabel("data")
    plt.show()


gallery(["plain VQ", "k-means start", "dead codes replaced", "rotation trick alone"])
gallery(["IBQ's gradient", "SimVQ", "FSQ 8 x 8", "LFQ, 6 bits"])

# %% [markdown]
# - **Plain VQ**: the few codes that lie among the latents get all gradients, and the others never move. The encoder
#   settles for the few.
# - **K-means** on the first batch puts the codes among the latents. Some still die as the encoder moves on.
# - **Replacing dead codes** by latents of the batch cures any start: a code that nobody uses is asked to move.
# - **The rotation trick** changes the gradient to the encoder, and not which codes get one. Alone it revives nothing:
#   take it together with the two above.
# - **IBQ** gives every code a gradient through the softmax over all codes. It fades with the distance, so that a start
#   as far as this one is not mended: IBQ begins with short codes and adds entropy terms. (Its own search is by the
#   largest dot product, which in two dimensions would choose the outermost codes only; hence distances here.)
# - **SimVQ** moves all codes at once through one linear layer, and has no bad start.
# - **FSQ** has a fixed grid that the encoder has to fill. Corners that the data do not need stay empty.
# - **LFQ** has the signs of its channels as codes. The entropy terms keep them in use, see below.

# %% [markdown]
# ## Usage and perplexity over the steps
#
# Usage is the share of codes that a batch of 512 points chooses, perplexity how many equally frequent codes would be as
# even. What will collapse has collapsed within the first hundred steps.

# %%
COLOURS = ["#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00", "#7F7F7F", "#B3B300"]


def smooth(values):
    width = max(1, STEPS // 50)
    return np.convolve(values, np.ones(width) / width, "valid")


def label_ends(axis, ends, gap):
    """Names beside the lines' ends, no closer than `gap`."""
    below = -np.inf
    for y, x, name, colour in sorted(ends):
        below = max(y, below + gap)
        axis.annotate(name, (x, y), (1.03 * x, below), color=colour, fontsize=8, va="center")


measures = {"usage": usage, "perplexity": perplexity}
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for axis, what, top in zip(axes, ("usage", "perplexity"), (1, CODES), strict=True):
    ends = []
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=True):
        y = smooth(measures[what](curve["counts"][:, 0]))
        axis.plot(y, color=colour, linewidth=1.5)
        ends.append((float(y[-1]), len(y), name, colour))
    label_ends(axis, ends, 0.05 * top)
    axis.set(xlabel="step", ylabel=f"{what} in a batch", ylim=(0, 1.08 * top), xlim=(0, 1.4 * len(y)))
    axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What comes back to z
#
# Seven codes (black). The loss pulls each quantized point towards the star; the arrows are minus its gradient at z.
#
# - **Straight-through** copies the gradient at the code: all points of a cell get the same arrow.
# - **The rotation trick** turns it by the angle between z and its code, and scales it by the ratio of their lengths: it
#   varies within a cell, most where z is short or far from its code.
# - **DiVeQ** moves along z - q only as far as the length of the error goes: its arrows add a pull to the code or away
#   from it, which stands in for the commitment loss.

# %%
codes = jnp.array([[1.6, 0.4], [0.6, 1.5], [-0.9, 1.3], [-1.7, -0.1], [-0.8, -1.4], [0.8, -1.3], [0.25, 0.15]])
target = jnp.array([2.2, 2.0])
axis_values = jnp.linspace(-2.3, 2.3, 15)
grid = jnp.stack(jnp.meshgrid(axis_values, axis_values), -1).reshape(-1, 2)
nearest = jnp.argmin(jnp.sum((grid[:, None] - codes) ** 2, -1), -1)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
estimators = {"straight-through": StraightThrough(), "rotation trick": RotationTrick(), "DiVeQ": DiVeQ()}
for axis, (name, estimator) in zip(axes, estimators.items(), strict=True):
    back = jax.grad(lambda z, e=estimator: 0.5 * jnp.sum((e(z, codes[nearest], codes) - target) ** 2))(grid)
    axis.quiver(*np.asarray(grid).T, *-np.asarray(back).T, nearest % 3, cmap="cividis", scale=60, width=0.005)
    axis.scatter(*np.asarray(codes).T, s=25, color="black", zorder=3)
    axis.scatter(*np.asarray(target), s=120, marker="*", color=ORANGE, zorder=3)
    axis.set(title=name, xticks=[], yticks=[], aspect="equal")
plt.show()

# %% [markdown]
# ## LFQ with and without its entropies
#
# The entropy of one point's codes is made small (each decision is clear), that of their mean large (all codes are
# used). Left, how often each code is chosen, most frequent first; right, the six latent channels of all points: without
# entropies the commitment alone draws them to -1 and 1.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for name, colour in (("LFQ, 6 bits", BLUE), ("LFQ, no entropies", ORANGE)):
    share = np.sort(counts[name][0])[::-1] / len(points)
    axes[0].plot(np.arange(1, CODES + 1), share, color=colour)
    first = int(np.flatnonzero(share)[-1])
    axes[0].annotate(f"{name}: {first + 1} codes", (1, share[0]), (14, share[0]), color=colour, va="center")
    axes[1].hist(np.ravel(seen[name][0]), bins=np.linspace(-2.5, 2.5, 80), histtype="step", color=colour, linewidth=1.5)
axes[0].axhline(1 / CODES, color=GREY, linestyle=":")
axes[0].set(xlabel="code, by frequency", ylabel="share of the points")
axes[1].set(xlabel="value of a latent channel", ylabel="how often")
axes[1].text(0.98, 0.9, "blue: with entropies", color=BLUE, transform=axes[1].transAxes, ha="right")
axes[1].text(0.98, 0.8, "orange: without", color=ORANGE, transform=axes[1].transAxes, ha="right")
for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What to take
#
# `docs/quantizers.md` has all quantizers of the package on image patches, and which to take when. In training, log
# `usage` and `perplexity` of the counts in `Quantized.stats`: they cost nothing, and collapse shows there first.
