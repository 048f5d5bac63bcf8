"""VSKNN: nearest neighbours among training sessions (Ludewig and Jannach, arXiv 1803.09587; Boz et al., 2402.01339).

    p      = weights of the history's items, w(r) for the item r places from the end     (B, n_items), sparse
    sim    = p S^T, over |p| |s| for the cosine                                         (B, n_sessions), sparse
    y      = (the largest k of sim, times the sequential weight) S, times idf           (B, n_items)

S holds a 1 for every item of every training session. All products are sparse; the cost depends on item counts.
"""

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy import sparse

from recbole_llm.config import Config
from recbole_llm.config.schema import untrained as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.model.llmseqsim import decay_weights

# Rows of the training split that are read at once when followers are collected.
CHUNK = 4096


class VSKNN(LLMRecommender):
    """Recommend the items of the training sessions most similar to the history.

    Items that no neighbour has rank below all others, by popularity. A user's own training session is no neighbour.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/VSKNN.yaml``.
    dataset : recbole SequentialDataset
        Training split.

    Raises
    ------
    ConfigError
        For an invalid value.
    """

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.settings = settings = schema.VSKNN.of(config)

        counts = dataset.inter_matrix(form="csr").astype(np.float64)
        sessions = counts.copy()
        sessions.data[:] = 1
        sessions.sort_indices()
        self.sessions: sparse.csr_matrix = sessions  # (user_num, n_items)
        self.by_item: sparse.csr_matrix = sessions.T.tocsr()
        self.size = np.diff(sessions.indptr)
        self.order = self._sampling_order(dataset, settings.sampling, int(config["seed"]))
        df = np.diff(self.by_item.indptr)
        total = max(1, int((self.size > 0).sum()))
        self.item_weight = 1 + np.log(total / np.maximum(df, 1)) if self.settings.idf else np.ones(len(df))
        popularity = np.asarray(counts.sum(0)).reshape(-1)
        # In (-1, 0): below every item that a neighbour has.
        self.fallback = (popularity + 1) / (popularity.max() + 2) - 1
        if self.settings.followers_only:
            self._collect_followers(dataset)

    def _sampling_order(self, dataset: HistoryDataset, sampling: str, seed: int) -> np.ndarray:
        """Place of every session in the order in which they are compared, smaller first; shape (user_num,)."""
        n = self.sessions.shape[0]
        place = np.empty(n, dtype=np.int64)
        if sampling == "random":
            first = np.random.default_rng(seed).permutation(n)
        else:
            ended = np.full(n, -np.inf)
            times = dataset.inter_feat[dataset.time_field].numpy()
            np.maximum.at(ended, dataset.inter_feat[dataset.uid_field].numpy(), times.reshape(len(times), -1)[:, 0])
            first = np.argsort(-ended, kind="stable")
        place[first] = np.arange(n)
        return place

    def _collect_followers(self, dataset: HistoryDataset) -> None:
        """(session, item) -> the item after it; the last one if an item occurs more than once."""
        previous = []
        lists, lengths = dataset.inter_feat[self.ITEM_SEQ], dataset.inter_feat[self.ITEM_SEQ_LEN]
        for rows in torch.arange(len(lengths)).split(CHUNK):
            previous.append(lists[rows].gather(1, lengths[rows][:, None] - 1)[:, 0])
        user = dataset.inter_feat[dataset.uid_field].numpy()
        key = user * self.n_items + torch.cat(previous).numpy()
        after = dataset.inter_feat[self.ITEM_ID].numpy()
        # Rows stand in the order of time, so the last of equal keys is the latest.
        order = np.argsort(key, kind="stable")
        last = np.append(key[order][1:] != key[order][:-1], True)
        self.follower_key, self.follower = key[order][last], after[order][last]

    # ---- RecBole's interface

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items); padding is ``-inf``. Computed on the CPU."""
        items = interaction[self.ITEM_SEQ].cpu()
        length = interaction[self.ITEM_SEQ_LEN].cpu()
        own = interaction[self.USER_ID].cpu().numpy() if self.USER_ID in interaction else None
        scores = self._scores(items, length, own)
        scores = np.where(scores > 0, scores, self.fallback).astype(np.float32)
        scores[:, 0] = -np.inf
        return torch.from_numpy(scores).to(interaction[self.ITEM_SEQ].device)

    # ---- neighbours

    def _scores(self, items: torch.Tensor, length: torch.Tensor, own: np.ndarray | None) -> np.ndarray:
        """Return sums over neighbours, float64 of shape (B, n_items)."""
        prompt, recency = self._prompts(items, length)
        similar = (prompt @ self.by_item).tocsr()
        row = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
        session, value = similar.indices.astype(np.int64), similar.data
        if own is not None:
            other = session != own[row]
            row, session, value = row[other], session[other], value[other]
        row, session, value = _best(row, session, value, -self.order[session], self.settings.sample_size)
        if self.settings.similarity == "cosine":
            norm = np.sqrt(np.asarray(prompt.multiply(prompt).sum(1)).reshape(-1))
            value = value / (norm[row] * np.sqrt(self.size[session]))
        # Of equally similar sessions those that were sampled first.
        row, session, value = _best(row, session, value, value, self.settings.neighbors, -self.order[session])
        if self.settings.sequential_weight:
            count = length.numpy()[row]
            value = value * (count - self._most_recent_shared(recency, row, session) + 1) / count
        shape = (len(items), self.sessions.shape[0])
        if not self.settings.followers_only:
            return (sparse.csr_matrix((value, (row, session)), shape) @ self.sessions).toarray() * self.item_weight
        newest = items.gather(1, (length - 1)[:, None])[:, 0].numpy()
        key = session * self.n_items + newest[row]
        at = np.minimum(np.searchsorted(self.follower_key, key), len(self.follower_key) - 1)
        found = self.follower_key[at] == key
        followers = sparse.coo_matrix(
            (value[found], (row[found], self.follower[at[found]])), (len(items), self.n_items)
        )
        return followers.toarray() * self.item_weight

    def _prompts(self, items: torch.Tensor, length: torch.Tensor) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Weight and place from the end of each distinct item of each history; a repeated one counts once, as newest.

        Both (B, n_items); the second holds r = 1 for the last item.
        """
        weights = decay_weights(self.settings.decay, length, items.shape[1], torch.float64).numpy()
        row, place = np.nonzero(weights > 0)
        item, r = items.numpy()[row, place], length.numpy()[row] - place
        order = np.lexsort((r, item, row))
        row, place, item, r = row[order], place[order], item[order], r[order]
        newest = np.append(True, (row[1:] != row[:-1]) | (item[1:] != item[:-1]))
        row, place, item, r = row[newest], place[newest], item[newest], r[newest]
        shape = (len(items), self.n_items)
        return (
            sparse.csr_matrix((weights[row, place], (row, item)), shape),
            sparse.csr_matrix((r.astype(np.float64), (row, item)), shape),
        )

    def _most_recent_shared(self, recency: sparse.csr_matrix, row: np.ndarray, session: np.ndarray) -> np.ndarray:
        """Place from the end of the newest history item that a session shares, for pairs that share one."""
        n = self.sessions.shape[0]
        item = recency.indices
        count = np.diff(self.by_item.indptr)[item]
        # Every (history item, session with it): the pairs that the product of the two sparse matrices runs through.
        start = np.repeat(self.by_item.indptr[item] - np.cumsum(count) + count, count)
        sessions = self.by_item.indices[start + np.arange(len(start))].astype(np.int64)
        rows = np.repeat(np.repeat(np.arange(recency.shape[0]), np.diff(recency.indptr)), count)
        key, place = rows * n + sessions, np.repeat(recency.data, count)
        order = np.lexsort((place, key))
        key, place = key[order], place[order]
        return place[np.searchsorted(key, row * n + session)]


def _best(
    row: np.ndarray, session: np.ndarray, value: np.ndarray, by: np.ndarray, k: int, then: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the entries of each row with the ``k`` largest ``by`` (ties: largest ``then``), rows in order."""
    order = np.lexsort((-by, row) if then is None else (-then, -by, row))
    row, session, value = row[order], session[order], value[order]
    first = np.searchsorted(row, row)
    kept = np.arange(len(row)) - first < k
    return row[kept], session[kept], value[kept]
