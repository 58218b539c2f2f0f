"""Training methods: which nets there are, and one loss per net. The weights of the terms live here.

See zoo/recipes/reconstruction.py for the plainest recipe, gan.py for two nets, proxy_codes.py for a teacher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.errors import WeightsError
from zoo.optim import Optimizer

UNTRAINED = "untrained"  # instead of a file: random weights, to try a recipe out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aux:
    """Beside a loss.

    Attributes:
        metrics: scalars to log, averaged over accumulation.
        stats: sums over the batch; "counts" among them are the tokenizer's ids.
        outputs: arrays whose rows are concatenated over accumulation; the losses that follow find them in their batch.
    """

    metrics: dict[str, jax.Array]
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A network that helps and is not trained: a teacher, a perceptual network. No checkpoint holds it.

    Attributes:
        build: makes it with random weights, of `rngs`.
        read: makes it from `file`.
        file: a path or a preset, "untrained", or None.
        missing: what to say where it is None.
    """

    build: Callable[..., nnx.Module]
    read: Callable[[str], nnx.Module]
    file: str | None
    missing: str

    def load(self) -> nnx.Module:
        """Raises WeightsError: no file, or it cannot be read."""
        if self.file is None:
            raise WeightsError(self.missing)
        return self.build(rngs=nnx.Rngs(0)) if self.file == UNTRAINED else self.read(self.file)


Loss = Callable[[dict[str, Any], dict[str, Array], Array, Array], tuple[Array, Aux]]


class Recipe:
    """What the training step and the loop ask of a recipe. Subclasses are frozen dataclasses with a `model` config.

    `nets` are the modules by name, those that are trained and those that are not; "tokenizer" becomes the release.
    """

    model: Any
    family: str

    def build(self, *, dtype: Any, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The nets that are trained."""
        return {"tokenizer": self.model.build(dtype=dtype, rngs=rngs)}

    def frozen(self) -> dict[str, Frozen]:
        """The nets that are not."""
        return {}

    def losses(self) -> dict[str, Loss]:
        """net -> f(nets, batch, key, step), in the order of their updates; each is differentiated by its own net."""
        raise NotImplementedError

    def trains(self, net: str, path: str) -> bool:
        """Whether the parameter at a dotted path is trained."""
        return True

    def optimizers(self, optim: Optimizer, steps: int) -> dict[str, tuple[Optimizer, int]]:
        """net -> its optimizer and how many updates it makes in a run of `steps`."""
        return {"tokenizer": (optim, steps)}

    def active(self, net: str, step: int) -> bool:
        """Whether a net is there at this step: trained, and seen by the others' losses."""
        return True

    def advance(self, net: str, nets: dict[str, Any], aux: Aux) -> None:
        """Moves state that has no gradient, in place: averages, clustered codes. Before the net's own update."""

    def prepare_at(self, step: int) -> bool:
        """Whether `prepare` runs before this step."""
        return False

    def prepare(self, nets: dict[str, Any], batch: dict[str, Array], key: Array, step: Array, counts: Array) -> None:
        """Rare changes, in place."""

    def check(self, config: Any) -> None:
        """Raises InputError where a TrainConfig lacks what the recipe needs."""

    def starting_from(self, model: Any, family: str) -> Recipe:
        """This recipe on the model of a release."""
        return dataclasses.replace(self, model=model, family=family)  # pyright: ignore[reportArgumentType]

    def initial(self) -> dict[tuple, Array]:
        """Parameters of the tokenizer that neither chance nor a release gives: path -> value."""
        return {}

    def view(self, tokenizer: Any, frozen: dict[str, Any]) -> Any:
        """The module that pictures and the evaluation look at: images in, images out."""
        return tokenizer


def as_input(image: Array, input_range: tuple[float, float]) -> Float[Array, "b h w 3"]:
    """uint8 to the module's own range."""
    low, high = input_range
    return image.astype(jnp.result_type(float)) / 255 * (high - low) + low
