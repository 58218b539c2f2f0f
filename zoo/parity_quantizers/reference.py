"""What a class of vector-quantize-pytorch with its arguments is here.

A class is a function from its arguments to a `Reference`. Arguments that it does not ask for make a case an unknown
kind. The originals differ between training and evaluation, ours do not: their evaluation is our forward pass.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import quantize as zq
from zoo.presets.rules import LINEAR, SAME, Rule, layer

sg = jax.lax.stop_gradient
Loss = Callable[[dict[str, Any], jax.Array, jax.Array], tuple[Any, dict[str, Any]]]
Make = Callable[[nnx.Rngs], Any]


class UnknownArgument(Exception):
    """An argument, or a value of it, that no function here knows."""


class Arguments(dict):
    """Constructor arguments. `take` removes one; None stands for its default, as in the original."""

    def take(self, name: str, default: Any = None) -> Any:
        value = self.pop(name, None)
        return default if value is None else value


@dataclasses.dataclass
class Reference:
    """One class of the original.

    Attributes:
        make: builds our quantizer.
        rules: the names of the original's arrays.
        loss: (our losses, z, quantized z) -> what the original returns as its loss, and its parts by name.
        per_layer: the loss is one number for each layer of a `Residual`.
        groups: residual quantizers side by side; ids and losses get a leading axis. 0: not a class of groups.
        squeeze: ids have no codebook axis.
        channels_first: x is [b, d, ...]; "images": where it has four axes or more.
        decoded_channels_first: so are decoded ids and all codes, as far as x is.
        ids_channels_first: ids are [b, q, ...].
        plain_codes: decoded ids and all codes are neither rotated nor normalised.
        masked: what stands where the mask is False: "zeros", "input", or nothing else than elsewhere.
        updates: training moves the codebook.
        layers: with quantizer dropout, how many layers run in a call with given arguments.
        kmeans: iterations before the first step, if the codebook is not there.
        ids_of: ids of the original from the quantized values inside the projection, where they are not ours.
        tied: names whose first group matches are one array, with one gradient.
        constants: arrays of ours, by the original's names, that it does not save.
    """

    make: Make
    rules: list[Rule]
    loss: Loss
    per_layer: bool = False
    groups: int = 0
    squeeze: bool = False
    channels_first: bool | Literal["images"] = False
    decoded_channels_first: bool = True
    ids_channels_first: bool = False
    plain_codes: bool = False
    masked: Literal["zeros", "input"] | None = None
    updates: bool = False
    layers: Callable[[dict[str, Any]], int | None] = lambda call: None
    kmeans: int = 0
    ids_of: Callable[[jax.Array], jax.Array] | None = None
    tied: str | None = None
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)


def no_loss(losses: dict[str, Any], z: jax.Array, q: jax.Array) -> tuple[Any, dict[str, Any]]:
    return jnp.zeros(()), {}


def projections(reference: str = "", ours: str = "", *, norm: bool = False) -> list[Rule]:
    rules = layer(f"{reference}project_out", f"{ours}project_out", LINEAR)
    if norm:
        return rules + layer("project_in.0", "project_in", LINEAR) + layer("project_in.1", "norm", SAME)
    return rules + layer(f"{reference}project_in", f"{ours}project_in", LINEAR)


def dropout(a: Arguments, layers: int) -> Callable[[dict[str, Any]], int | None]:
    """How many layers run in a call with a fixed seed."""
    active = a.take("quantize_dropout", False) and layers > 1
    first, multiple = a.take("quantize_dropout_cutoff_index", 0), a.take("quantize_dropout_multiple_of", 1)

    def number(call: dict[str, Any]) -> int | None:
        if not active:
            return None
        if "rand_quantize_dropout_fixed_seed" not in call:
            raise UnknownArgument("quantize_dropout without rand_quantize_dropout_fixed_seed")
        index = random.Random(call["rand_quantize_dropout_fixed_seed"]).randrange(first, layers)
        return -(-(index + 1) // multiple) * multiple

    return number


def grouped(one: Make, groups: int) -> tuple[tuple[str, str], Make]:
    """((prefix of the original's names, prefix of ours), what makes the groups); no groups: 0."""
    if not groups:
        return ("", ""), one
    return ("rvqs.{group}.", "each."), lambda rngs: zq.Product(one, groups, rngs=rngs)


def without_effect(a: Arguments, *names: str, **neutral: Any) -> None:
    """Takes what changes nothing here, whatever it is, or as long as it has its neutral value."""
    for name in names:
        a.take(name)
    for name, value in neutral.items():
        given = a.take(name, value)
        if given != value:
            raise UnknownArgument(f"{name}={given}")


def activation(text: str) -> Callable[[Any], Any]:
    """The function that PyTorch prints as `text`, as "GELU(approximate='none')"."""
    kind, inside = text.removesuffix(")").split("(", 1)
    options = dict(part.split("=") for part in inside.split(", ") if part)
    options.pop("inplace", None)
    functions: dict[str, Callable[..., Any]] = {
        "ReLU": lambda: nnx.relu,
        "ReLU6": lambda: nnx.relu6,
        "GELU": lambda approximate: lambda x: nnx.gelu(x, approximate=approximate == "'tanh'"),
        "SiLU": lambda: nnx.silu,
        "Tanh": lambda: nnx.tanh,
        "Sigmoid": lambda: nnx.sigmoid,
        "Identity": lambda: lambda x: x,
        "LeakyReLU": lambda negative_slope: lambda x: nnx.leaky_relu(x, float(negative_slope)),
        "ELU": lambda alpha: lambda x: nnx.elu(x, float(alpha)),
        "Softplus": lambda beta, threshold: lambda x: nnx.softplus(x * float(beta)) / float(beta),
    }
    if kind not in functions:
        raise UnknownArgument(text)
    return functions[kind](**options)
