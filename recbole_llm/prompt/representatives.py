"""Clusters of items, each represented by one: what the variant Classify of LLMSeqPrompt chooses among."""

from typing import NamedTuple

import numpy as np
import torch


class Representatives(NamedTuple):
    """Clusters that hold an item with a name.

    Attributes
    ----------
    items : torch.LongTensor, shape (C,)
        The most popular named item of each cluster.
    cluster_of : torch.LongTensor, shape (n_items,)
        Number of each item's cluster; C for padding and for clusters without a named item.
    distance : torch.DoubleTensor, shape (n_items, C)
        From the centre of each cluster.
    """

    items: torch.Tensor
    cluster_of: torch.Tensor
    distance: torch.Tensor


def find_representatives(
    vectors: np.ndarray, named: np.ndarray, popularity: np.ndarray, clusters: int
) -> Representatives:
    """Cluster the item vectors by k-means and choose an item to represent each cluster.

    Parameters
    ----------
    vectors : numpy.ndarray of float64, shape (n_items, d)
        Row 0 is padding.
    named : numpy.ndarray of bool, shape (n_items,)
    popularity : numpy.ndarray, shape (n_items,)
        Training interactions.
    clusters : int
        At most as many as there are distinct vectors of named items.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(vectors[named], axis=0))
    fitted = KMeans(min(clusters, distinct), random_state=0, n_init=10).fit(vectors[1:])
    cluster = np.concatenate([[-1], fitted.labels_])
    order = np.argsort(-popularity, kind="stable")
    order = order[named[order]]
    kept, first = np.unique(cluster[order], return_index=True)
    distance = torch.cdist(torch.from_numpy(vectors), torch.from_numpy(fitted.cluster_centers_[kept]))
    number = np.searchsorted(kept, cluster).clip(max=len(kept) - 1)
    number = np.where(kept[number] == cluster, number, len(kept))
    return Representatives(torch.from_numpy(order[first]), torch.from_numpy(number), distance)


def chosen_first(similar: torch.Tensor, chosen: torch.Tensor, cluster_of: torch.Tensor, count: int) -> torch.Tensor:
    """Raise the scores of the members of the chosen clusters above all others.

    Parameters
    ----------
    similar : torch.Tensor, shape (B, n_items)
        Scores; column 0 is padding.
    chosen : torch.LongTensor, shape (B, k)
        Representatives of the chosen clusters, padded with 0.
    cluster_of : torch.LongTensor, shape (n_items,)
        See :class:`Representatives`.
    count : int
        Number of clusters.
    """
    is_chosen = torch.zeros(len(chosen), count + 1, dtype=torch.bool, device=chosen.device)
    # Padding and items of clusters without a name are in a last one, which nobody chooses.
    is_chosen.scatter_(1, cluster_of[chosen], True)
    is_chosen[:, -1] = False
    span = similar[:, 1:].amax() - similar[:, 1:].amin() + 1
    return similar + span * is_chosen[:, cluster_of]
