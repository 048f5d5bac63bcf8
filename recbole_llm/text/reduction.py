"""Item vectors in fewer dimensions, as Boz et al. (arXiv 2402.01339) compare them: PCA, random projection, LDA, AE."""

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from recbole_llm.config.schema.blocks import Reduction
from recbole_llm.config.values import choice
from recbole_llm.errors import ConfigError

# Vectors (m, d) -> (m, width), float64.
Transform = Callable[[np.ndarray], np.ndarray]

# The authors' autoencoder: Keras' Adam and initialisation, and so few epochs that it falls short of PCA.
AUTOENCODER_EPOCHS, AUTOENCODER_BATCH, AUTOENCODER_LEARNING_RATE = 3, 512, 1e-3


def fit_reduction(
    vectors: np.ndarray,
    method: str,
    dim: int,
    *,
    fit_rows: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Transform:
    """Fit a reduction on a catalogue's vectors, for those and others of the same kind; nothing is normalised.

    Parameters
    ----------
    vectors : numpy.ndarray, shape (n, d)
        One row per item, without padding.
    method : str
        * "none": the vectors as they are, whatever `dim` is;
        * "pca": principal components, centred, not whitened; exact, each with its largest loading positive;
        * "random_projection": Gaussian, not centred; nothing is fitted;
        * "lda": linear discriminants of `classes`;
        * "autoencoder": linear layers d, ..., 4 dim, 2 dim, dim and back, three epochs of Adam on the squared error.
    dim : int
        Wanted width; capped at d, for PCA also at the number of fitted rows, for LDA at the number of classes less
        one.
    fit_rows : numpy.ndarray of bool, shape (n,), optional
        Items that the reduction is fitted on; default all.
    classes : sequence of str, length n, optional
        For LDA: the class of each item; items with an empty one are not fitted on.
    seed : int
        Seed of the random projection and the autoencoder.

    Returns
    -------
    callable
        (m, d) -> (m, width), float64; PCA's columns sorted by variance, largest first.

    Raises
    ------
    ConfigError
        An unknown method, a `dim` below 1, nothing to fit on, or LDA without at least two classes.
    """
    choice({"dim_reduction": method}, "dim_reduction", get_args(Reduction))
    vectors = np.asarray(vectors, dtype=np.float64)
    if method == "none":
        return _float64
    if dim < 1:
        raise ConfigError(f"reduced_dim={dim!r} is too small: at least 1 is needed.")
    fitted = np.ones(len(vectors), dtype=bool) if fit_rows is None else np.asarray(fit_rows, dtype=bool)
    if not fitted.any():
        raise ConfigError("reduction_fit: there is no item to fit the reduction on.")
    dim = min(dim, vectors.shape[1])
    if method == "pca":
        return _pca(vectors, fitted, min(dim, int(fitted.sum())))
    if method == "random_projection":
        return _random_projection(vectors, dim, seed)
    if method == "lda":
        return _lda(vectors, fitted, dim, classes)
    return _autoencoder(vectors, fitted, dim, seed)


def _float64(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors, dtype=np.float64)


def normalize_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, shape (n, d); a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def fit_whitening(vectors: np.ndarray, fit_rows: np.ndarray | None = None) -> Transform:
    """Centred, uncorrelated columns of variance 1 over the fitted rows.

    Directions without variance, such as those beyond the number of items, are left out.

    Parameters
    ----------
    vectors : numpy.ndarray, shape (n, d)
    fit_rows : numpy.ndarray of bool, shape (n,), optional
        Default: all.

    Returns
    -------
    callable
        (m, d) -> (m, rank).
    """
    vectors = _float64(vectors)
    fitted = np.ones(len(vectors), dtype=bool) if fit_rows is None else fit_rows
    components = _pca(vectors, fitted, vectors.shape[1])
    deviation = components(vectors[fitted]).std(axis=0)
    kept = deviation > 1e-6 * deviation.max()
    return lambda others: components(others)[:, kept] / deviation[kept]


def _pca(vectors: np.ndarray, fitted: np.ndarray, dim: int) -> Transform:
    """Through the covariance (d, d): exact, where scikit-learn's default is randomised for many items."""
    mean = vectors[fitted].mean(axis=0)
    centred = vectors[fitted] - mean
    axes = np.linalg.eigh(centred.T @ centred).eigenvectors[:, ::-1][:, :dim]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(dim)]
    axes = axes * np.sign(largest)
    return lambda others: (_float64(others) - mean) @ axes


def _random_projection(vectors: np.ndarray, dim: int, seed: int) -> Transform:
    from sklearn.random_projection import GaussianRandomProjection

    model = GaussianRandomProjection(dim, random_state=seed).fit(vectors)
    return lambda others: model.transform(_float64(others))


def _lda(vectors: np.ndarray, fitted: np.ndarray, dim: int, classes: Sequence[str] | None) -> Transform:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if classes is None:
        raise ConfigError("dim_reduction=lda needs a class of every item: set lda_class_field to a field of .item.")
    labels = np.asarray(classes, dtype=object)
    fitted = fitted & (labels != "")
    n_classes = len(set(labels[fitted]))
    if n_classes < 2 or n_classes >= fitted.sum():
        raise ConfigError(
            f"dim_reduction=lda needs at least two classes and fewer classes than items, but lda_class_field gives "
            f"{n_classes} of {int(fitted.sum())} items. Choose another field, or dim_reduction=pca."
        )
    model = LinearDiscriminantAnalysis(n_components=min(dim, n_classes - 1))
    model.fit(vectors[fitted], labels[fitted].astype(str))
    return lambda others: model.transform(_float64(others))


def _autoencoder(vectors: np.ndarray, fitted: np.ndarray, dim: int, seed: int) -> Transform:
    """No activations: composed, the layers are one linear map to the code and one back."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.from_numpy(vectors).float()
    widths = [vectors.shape[1]]
    narrow = [dim * 2**i for i in range(1, 32) if dim * 2**i < vectors.shape[1]]
    widths += [*reversed(narrow), dim]
    layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    layers += [nn.Linear(b, a) for a, b in reversed(list(zip(widths, widths[1:], strict=False)))]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    encoder, whole = nn.Sequential(*layers[: len(widths) - 1]), nn.Sequential(*layers)
    optimizer = torch.optim.Adam(whole.parameters(), lr=AUTOENCODER_LEARNING_RATE)
    rows = torch.from_numpy(np.flatnonzero(fitted))
    with torch.enable_grad():
        for _ in range(AUTOENCODER_EPOCHS):
            for batch in rows[torch.randperm(len(rows), generator=generator)].split(AUTOENCODER_BATCH):
                optimizer.zero_grad()
                functional.mse_loss(whole(data[batch]), data[batch]).backward()
                optimizer.step()

    def transform(others: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return encoder(torch.from_numpy(_float64(others)).float()).double().numpy()

    return transform
