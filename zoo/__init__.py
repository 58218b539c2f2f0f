"""A model zoo of multimodal tokenizers in JAX: verified against the originals, trainable on any mesh.

import zoo
tok = zoo.load("titok_tiny.photos")     # a preset, or a release folder
codes = tok.encode(images)              # uint8 [b, h, w, 3] -> Codes, ids [b, t, q]
images = tok.decode(codes)              # float32 [b, h, w, 3] in [-1, 1]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.pretrained import info, list_presets, load
    from zoo.tokenizer import Tokenizer
    from zoo.types import Codes, Spec

__version__ = "0.1.0"
__all__ = ["Codes", "Spec", "Tokenizer", "info", "list_presets", "load"]

_HOME = {"load": "pretrained", "list_presets": "pretrained", "info": "pretrained", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import zoo` stays light."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'")
    return getattr(importlib.import_module(f"zoo.{_HOME.get(name, 'types')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
