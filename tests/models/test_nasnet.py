"""NASNet's cells, and how they are chained."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.models.backbones import nasnet
from od_finetune.models.layers import BatchNorm, ConvHyperparams, named_variables

HYPERPARAMS = ConvHyperparams(initializer=tf_keras.initializers.Ones, activation="none", norm=BatchNorm(epsilon=0.0))


def test_halving_sees_every_other_cell_and_their_diagonal_neighbours():
    halved = nasnet._Halved("Cell", HYPERPARAMS, filters=2)
    image = tf.reshape(tf.range(9.0), [1, 3, 3, 1])
    np.testing.assert_allclose(halved(image, False)[0, ..., 0], [[0, 2], [6, 8]])
    np.testing.assert_allclose(halved(image, False)[0, ..., 1], [[4, 0], [0, 0]])  # beyond the border there are zeros
    assert {name.rpartition("/")[0] for name in named_variables(halved)} == {
        "Cell/path1_conv",
        "Cell/path2_conv",
        "Cell/final_path_bn",
    }


@pytest.mark.parametrize(
    ("kind", "side", "channels"), [(nasnet._NORMAL, 6, 6 * 4), (nasnet._REDUCTION, 3, 4 * 4)]
)
def test_cells(kind, side, channels):
    cell = nasnet.Cell("cell_1", HYPERPARAMS, kind, filters=4)
    outputs = cell(tf.zeros([2, 6, 6, 5]), tf.zeros([2, 6, 6, 7]), training=False)
    assert outputs.shape == (2, side, side, channels)
    names = named_variables(cell)
    assert names["cell_1/prev_1x1/weights"].shape == (1, 1, 7, 4)
    assert names["cell_1/1x1/weights"].shape == (1, 1, 5, 4)
    assert "cell_1/comb_iter_0/left/separable_5x5_2/pointwise_weights" in names
    assert "cell_1/comb_iter_4/left/bn_sep_3x3_1/beta" in names


class _Noting:
    """Says what it is given."""

    def __call__(self, inputs: str, previous: str, training: bool) -> str:
        return f"({inputs} {previous})"


def test_the_cell_after_a_reduction_skips_it():
    cells = {name: _Noting() for name in ("cell_5", "reduction_cell_0", "cell_6", "cell_7")}
    *_, fifth, reduction, sixth, seventh = nasnet._through(cells, ["a", "b"], False)
    assert fifth == "(b a)"
    assert reduction == f"({fifth} b)"
    assert sixth == f"({reduction} b)"
    assert seventh == f"({sixth} {reduction})"
