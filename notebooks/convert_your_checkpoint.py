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
# # A PyTorch checkpoint in, verified, and out again
#
# A checkpoint of the original TiTok, published or your own, becomes a model of this package: every tensor is used,
# every parameter is filled, and the way back gives the same bits. What you train further can go back to users of the
# original. This notebook needs neither PyTorch nor a download, and about half a minute on two CPU cores.

# %%
try:
    import zoo
except ImportError:
    # %pip install -q tokenizer-zoo
    import zoo

# %%
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from zoo import convert, presets
from zoo.data.sources import open_source
from zoo.data.transforms import eval_transform
from zoo.errors import WeightsError
from zoo.pretrained import info, save
from zoo.tokenizer import Tokenizer

# %% [markdown]
# ## The checkpoint
#
# Two things describe it: a state dict, and the config that the original was built from. For a published model both are
# on the hub (`model.safetensors` and `config.json`), and one command does everything below:
#
#     zoo convert titok_s128.imagenet model.safetensors s128
#
# For your own run of the original, the config is its yaml file as a dict, and the weights are what `state_dict()`
# gives, written with `safetensors.torch.save_file`. A small model with random weights stands in for it here.

# %%
config = {
    "config": {
        "model": {
            "vq_model": {
                "vit_enc_model_size": "t64x2h4",  # width 64, 2 layers, 4 heads; published: small, base, large
                "vit_dec_model_size": "t64x2h4",
                "vit_enc_patch_size": 16,
                "vit_dec_patch_size": 16,
                "num_latent_tokens": 16,
                "token_size": 8,
                "codebook_size": 256,
                "use_l2_norm": True,
                "is_legacy": False,
                "finetune_decoder": False,
            }
        },
        "dataset": {"preprocessing": {"crop_size": 64}},
    }
}
family = presets.family("titok")
module = family.config_from_reference(config).build(rngs=nnx.Rngs(0))
save_file(convert.to_reference(Tokenizer(module, name="stand-in", family="titok")), "their_model.safetensors")

# %%
theirs = load_file("their_model.safetensors")
for name in list(theirs)[:6]:
    print(f"{name:50s} {theirs[name].shape}")
print(f"... {len(theirs)} tensors, {sum(t.size for t in theirs.values()):,} numbers")

# %% [markdown]
# ## In
#
# `from_reference` builds our model from their config and fills it. The layers of a transformer lie behind each other in
# one array here, kernels are transposed, and patches are a matrix product; name rules say how each tensor changes.

# %%
tok = convert.from_reference("titok", config, "their_model.safetensors")
print(tok.spec.tokens, "tokens of", tok.spec.vocab_size)
for path, leaf in list(nnx.to_flat_state(nnx.state(tok.module)))[:6]:
    print(f"{'.'.join(map(str, path)):50s} {leaf.shape}")

# %% [markdown]
# ## Verified
#
# Nothing is skipped in silence. A missing, foreign or wrongly shaped tensor is named:

# %%
broken = dict(theirs)
broken["encoder.ln_post.weigth"] = broken.pop("encoder.ln_post.weight")
broken["quantize.embedding.weight"] = broken["quantize.embedding.weight"][:100]
try:
    convert.from_reference("titok", config, broken)
except WeightsError as error:
    print(error)

# %% [markdown]
# Names and shapes do not prove that the numbers mean the same. For that the models of this package were compared with
# the original, output by output: the cases are in `tests/goldens`, and `zoo parity FOLDER` runs them. A case of your
# own is a folder with a config, weights, inputs and the outputs that the original gives for them.
#
# The way back gives every tensor bit for bit:

# %%
back = convert.to_reference(tok)
assert back.keys() == theirs.keys()
print(all(np.array_equal(back[name], theirs[name]) for name in theirs))

# %% [markdown]
# ## Use
#
# A release is a folder that `zoo.load` and every command take.

# %%
save(tok, "converted", source="their_model.safetensors")
tok = zoo.load("converted")
info("converted")["parameters"]

# %%
photo = open_source("bundled")[2]["image"]
codes = tok.encode(eval_transform(photo, 64)[None])
print(np.asarray(codes.ids[0, :, 0]))

# %% [markdown]
# ## Out again
#
# After training here, `to_reference` gives the state dict for the original's `load_state_dict`.

# %%
tok.module.latent_tokens[...] *= 1.01  # stands in for training
ours = convert.to_reference(tok)
save_file(ours, "our_model.safetensors")
changed = [name for name in ours if not np.array_equal(ours[name], theirs[name])]
changed
