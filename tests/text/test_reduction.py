"""Reductions of item vectors against scikit-learn and known answers."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from recbole_llm.errors import ConfigError
from recbole_llm.text.reduction import fit_reduction, normalize_rows
from tests.configs import choices_of

DRAW = np.random.default_rng(0)
VECTORS = DRAW.normal(size=(60, 12)) * np.linspace(3, 0.5, 12) + 5
CLASSES = [f"c{i % 4}" for i in range(60)]


def reduce_vectors(vectors, method, dim, **fit):
    """A catalogue's vectors by the reduction fitted to them."""
    return fit_reduction(vectors, method, dim, **fit)(vectors)


def test_pca_is_scikit_learns_up_to_signs():
    found = reduce_vectors(VECTORS, "pca", 5)
    np.testing.assert_allclose(np.abs(found), np.abs(PCA(5, svd_solver="full").fit_transform(VECTORS)), atol=1e-9)
    assert np.all(np.diff(found.var(axis=0)) < 0)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)


def test_pca_keeps_all_distances_where_it_keeps_all_dimensions():
    found = reduce_vectors(VECTORS, "pca", 12)
    expected = np.linalg.norm(VECTORS[:, None] - VECTORS, axis=2)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=2), expected, atol=1e-9)


def test_pca_does_not_depend_on_the_order_of_items():
    order = DRAW.permutation(60)
    np.testing.assert_allclose(reduce_vectors(VECTORS[order], "pca", 6), reduce_vectors(VECTORS, "pca", 6)[order])


@pytest.mark.parametrize("method", ["pca", "lda", "autoencoder"])
def test_fitted_on_some_applied_to_all(method):
    some = np.arange(60) < 40
    found = reduce_vectors(VECTORS, method, 3, fit_rows=some, classes=CLASSES)
    assert found.shape == (60, 3)
    moved = VECTORS.copy()
    moved[50] += 100
    again = reduce_vectors(moved, method, 3, fit_rows=some, classes=CLASSES)
    np.testing.assert_allclose(again[:50], found[:50])
    assert not np.allclose(again[50], found[50])


def test_random_projection_keeps_lengths_on_average():
    many = DRAW.normal(size=(200, 400))
    found = reduce_vectors(many, "random_projection", 100, seed=3)
    ratio = (found**2).sum(axis=1) / (many**2).sum(axis=1)
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    assert np.array_equal(found, reduce_vectors(many, "random_projection", 100, seed=3))
    assert not np.allclose(found, reduce_vectors(many, "random_projection", 100, seed=4))


def test_lda_is_scikit_learns_and_leaves_items_without_class_out_of_the_fit():
    labels = ["" if i >= 50 else label for i, label in enumerate(CLASSES)]
    expected = LinearDiscriminantAnalysis(n_components=3).fit(VECTORS[:50], labels[:50]).transform(VECTORS)
    np.testing.assert_allclose(reduce_vectors(VECTORS, "lda", 8, classes=labels), expected)


def test_the_autoencoder_is_linear_seeded_and_learns():
    many = DRAW.normal(size=(4000, 3)) @ DRAW.normal(size=(3, 40))  # three dimensions in forty
    found = reduce_vectors(many, "autoencoder", 3, seed=1)
    assert np.array_equal(found, reduce_vectors(many, "autoencoder", 3, seed=1))
    assert not np.allclose(found, reduce_vectors(many, "autoencoder", 3, seed=2))
    # A linear map with an offset explains the code entirely.
    design = np.column_stack([many, np.ones(len(many))])
    rest = found - design @ np.linalg.lstsq(design, found, rcond=None)[0]
    assert np.abs(rest).max() < 1e-4
    # And the items can be read from it: what it threw away is little.
    code = np.column_stack([found, np.ones(len(found))])
    rest = many - code @ np.linalg.lstsq(code, many, rcond=None)[0]
    assert (rest**2).sum() < 1e-3 * (many**2).sum()


@pytest.mark.parametrize(
    ("method", "width"), [("none", 12), ("pca", 12), ("random_projection", 12), ("autoencoder", 12), ("lda", 3)]
)
def test_the_width_is_capped(method, width):
    assert reduce_vectors(VECTORS, method, 512, classes=CLASSES).shape == (60, width)
    assert reduce_vectors(VECTORS[:7], "pca", 512).shape == (7, 7)


def test_rows_of_length_one():
    found = normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert found.tolist() == [[0.6, 0.8], [0, 0]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "svd"}, "invalid value for dim_reduction: 'svd' .choose from 'none', 'pca'"),
        ({"dim": 0}, "reduced_dim=0 is too small"),
        ({"fit_rows": np.zeros(60, dtype=bool)}, "no item to fit"),
        ({"method": "lda"}, "set lda_class_field"),
        ({"method": "lda", "classes": ["same"] * 60}, "gives 1 of 60 items"),
        ({"method": "lda", "classes": [str(i) for i in range(60)]}, "gives 60 of 60 items"),
        ({"method": "lda", "classes": [""] * 60}, "gives 0 of 0 items"),
    ],
)
def test_errors(arguments, says):
    with pytest.raises(ConfigError, match=says):
        reduce_vectors(**{"vectors": VECTORS, "method": "pca", "dim": 4, **arguments})


def test_every_reduction_is_finite_for_a_catalogue_smaller_than_its_vectors():
    few = DRAW.normal(size=(9, 30))
    for method in choices_of("dim_reduction", "LLMSeqSim"):
        found = reduce_vectors(few, method, 16, classes=["a", "b", "b"] * 3)
        assert np.isfinite(found).all()
