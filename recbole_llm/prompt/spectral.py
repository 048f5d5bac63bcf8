"""Spectral clusters of graphs of shared histories, and paths through a tree of them."""

import numpy as np
import scipy.sparse as sp
from scipy.linalg import qr, svd
from scipy.sparse.linalg import eigsh


def without_diagonal(matrix: sp.spmatrix) -> sp.csr_matrix:
    """Return a copy of a matrix without the entries of its diagonal."""
    matrix = sp.csr_matrix(matrix)
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    return matrix


def cluster_paths(affinity: sp.csr_matrix, clusters: int, largest: int, seed: int) -> list[tuple[int, ...]]:
    """Labels from the root to the leaf of every node, clusters split again while they have more than ``largest``."""
    paths: list[tuple[int, ...]] = [()] * affinity.shape[0]
    waiting = [np.arange(affinity.shape[0])]
    while waiting:
        members = waiting.pop()
        if len(members) <= largest:
            continue
        labels = spectral_clusters(affinity[members][:, members], min(clusters, len(members) - 1), seed)
        if len(np.unique(labels)) == 1:
            # Nothing tells them apart, no shared history, say: equal parts.
            labels = np.arange(len(members)) * min(clusters, -(-len(members) // largest)) // len(members)
        for number, label in enumerate(np.unique(labels)):
            part = members[labels == label]
            for member in part:
                paths[member] = (*paths[member], number)
            waiting.append(part)
    return paths


def spectral_clusters(affinity: sp.csr_matrix, clusters: int, seed: int) -> np.ndarray:
    """Normalised-cut clusters; nodes without a neighbour are one cluster more.

    The leading eigenvectors of D^-1/2 A D^-1/2, assigned by column-pivoted QR (Damle, Minden and Ying, 2019): no
    k-means, no start values.

    Returns
    -------
    numpy.ndarray of int64, shape (nodes,)
    """
    degree = np.asarray(affinity.sum(1)).ravel()
    labels = np.full(len(degree), clusters, dtype=np.int64)
    linked = np.flatnonzero(degree)
    if len(linked) <= clusters + 1:
        labels[linked] = np.arange(len(linked))
        return labels
    scale = sp.diags(1 / np.sqrt(degree[linked]))
    normalised = scale @ affinity[linked][:, linked] @ scale
    start = np.random.default_rng(seed).standard_normal(len(linked))
    # The signs of eigenvectors are arbitrary; the assignment does not depend on them.
    _, vectors = eigsh(normalised, k=clusters, which="LA", v0=start, tol=1e-4, ncv=min(len(linked), 4 * clusters))
    pivots = qr(vectors.T, pivoting=True, mode="r")[-1][:clusters]
    left, _, right = svd(vectors[pivots].T)
    labels[linked] = np.abs(vectors @ (left @ right)).argmax(1)
    return labels
