"""The rows of zoo/quantize/table.py as test parameters."""

import pytest

from zoo.quantize.table import SCHEMES

# Of others that run in the default suite: these compile for as long and are slow tests.
RELATIVES = (
    "grouped_residual heads ibq_euclidean lfq_groups residual_lfq residual_shared sigma_gaussian split vq_affine "
    "vq_ema_l2 vq_encodec vq_l2 vq_mimi vq_projected vq_rotation"
).split()


def rows(names=None, quick=None):
    """Names of schemes (all), slow but for `quick` ones (all but the relatives)."""
    names = [scheme.name for scheme in SCHEMES] if names is None else names
    quick = [name for name in names if name not in RELATIVES] if quick is None else quick
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
