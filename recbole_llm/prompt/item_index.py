"""Item indexes: the code of an item in a prompt.

RecBole's internal ids follow the order of the file, which on user-sorted files follows the histories: the next item is
often the next number. They never reach a prompt; an index assigns every item a code instead.

=================== ================================================================================== =======
scheme              code                                                                               leak
=================== ================================================================================== =======
``random``          a seeded permutation of numbers from 1001                                          none
``sequential_train`` numbers from 1001 in order of first appearance in the training histories, items    reduced
                    without one after them in random order (OpenP5)
``sequential_full`` numbers from 1 in order of first appearance in the whole histories, test items     leaky
                    included, users in seeded random order (as P5 and POD were published)
``collaborative``   path in a tree of spectral clusters of training co-occurrence, tokens ``<CI k>``    none
                    (OpenP5)
``sci``             cluster path in the joint graph of users and items, plain numbers (LightLM)         none
``gci``             product quantisation of BPR-MF vectors, plain numbers (LightLM)                     none
``title``           the item's text                                                                    none
=================== ================================================================================== =======

Papers: P5 (arXiv 2203.13366), POD (CIKM'23), How to Index Item IDs (arXiv 2305.06569, OpenP5), LightLM (2310.17488).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.layer.code_loss import NO_TOKEN
from recbole_llm.prompt.spectral import cluster_paths, without_diagonal

SCHEMES = ("random", "sequential_train", "sequential_full", "collaborative", "sci", "gci", "title")
LEAKS = {"sequential_train": "reduced", "sequential_full": "leaky"}
FIRST = 1001  # OpenP5's smallest number: every code of a small catalogue has the same number of digits


@dataclass(frozen=True)
class Histories:
    """Training and whole histories in time order, as flat arrays.

    Attributes
    ----------
    user, item : numpy.ndarray of int64, shape (interactions,)
        All interactions, by user and time; internal ids.
    train : numpy.ndarray of bool, shape (interactions,)
        Which of them are training data.
    n_users, n_items : int
        Padding included.
    """

    user: np.ndarray
    item: np.ndarray
    train: np.ndarray
    n_users: int
    n_items: int

    @classmethod
    def of(cls, dataset: HistoryDataset) -> "Histories":
        """Those of the training split of a :class:`recbole_llm.data.dataset.HistoryDataset`."""
        train = np.zeros(len(dataset.flat), dtype=bool)
        train[dataset.train_positions] = True
        return cls(
            dataset.flat[dataset.uid_field].numpy(),
            dataset.flat[dataset.iid_field].numpy(),
            train,
            dataset.user_num,
            dataset.item_num,
        )

    def renumbered(self, user: np.ndarray, item: np.ndarray) -> "Histories":
        """Return the same histories under other ids; ``user[old]`` and ``item[old]`` are the new ones."""
        return replace(self, user=user[self.user], item=item[self.item])

    def matrix(self) -> sp.csr_matrix:
        """Training interactions as a binary (n_users, n_items) matrix."""
        pairs = (np.ones(self.train.sum()), (self.user[self.train], self.item[self.train]))
        matrix = sp.csr_matrix(pairs, shape=(self.n_users, self.n_items))
        matrix.data[:] = 1
        return matrix


@dataclass(frozen=True)
class ItemIndex:
    """Codes of items, and of users where the scheme gives them one.

    Attributes
    ----------
    scheme : str
    items : list of str
        Code by internal id; ``items[0]``, padding, is empty; the others are distinct.
    users : list of str
        The same for users.
    new_tokens : list of str
        Tokens that the vocabulary has to gain.
    leak : {'none', 'reduced', 'leaky'}
        How much codes reveal about the order of the histories.
    info : dict
        What the scheme found: clusters, levels, duplicates.
    """

    scheme: str
    items: list[str]
    users: list[str]
    new_tokens: list[str] = field(default_factory=list)
    leak: str = "none"
    info: dict[str, Any] = field(default_factory=dict)


def build_item_index(
    scheme: str, histories: Histories, seed: int, texts: Sequence[str] = (), **options: Any
) -> ItemIndex:
    """Build an index.

    Parameters
    ----------
    scheme : str
        One of :data:`SCHEMES`.
    histories : Histories
    seed : int
        Of permutations and clusterings.
    texts : sequence of str
        Item texts by internal id, for ``title``.
    **options
        ``clusters`` and ``cluster_size`` of ``collaborative`` and ``sci`` (branching, largest leaf); ``subspaces``,
        ``codewords`` and ``factors`` of ``gci``.

    Raises
    ------
    ConfigError
        For an unknown scheme or options out of range.
    """
    draw = np.random.default_rng(seed)
    users = _numbers(1 + draw.permutation(histories.n_users - 1))
    if scheme == "random":
        return ItemIndex(scheme, _numbers(FIRST + draw.permutation(histories.n_items - 1)), users)
    if scheme == "sequential_train":
        order = _with_rest(_first_appearance(histories.item[histories.train]), histories.n_items, draw)
        return ItemIndex(scheme, _ranked(order, FIRST), users, leak=LEAKS[scheme])
    if scheme == "sequential_full":
        # A stable sort by the users' random ranks keeps each history in time order.
        by_user = np.argsort(draw.permutation(histories.n_users)[histories.user], kind="stable")
        order = _with_rest(_first_appearance(histories.item[by_user]), histories.n_items, draw)
        return ItemIndex(scheme, _ranked(order, 1), users, leak=LEAKS[scheme])
    if scheme not in SCHEMES:
        raise ConfigError(f"item_index={scheme!r} is not one of {', '.join(SCHEMES)}.")
    # The running numbers within a cluster, and of equal titles, would follow the internal ids, which leak.
    user, item = (np.append(0, 1 + draw.permutation(n - 1)) for n in (histories.n_users, histories.n_items))
    index = _of_shuffled(scheme, histories.renumbered(user, item), users, seed, texts, item.argsort(), **options)
    return replace(index, users=[index.users[i] for i in user], items=[index.items[i] for i in item])


def _of_shuffled(
    scheme: str,
    histories: Histories,
    users: list[str],
    seed: int,
    texts: Sequence[str],
    old: np.ndarray,
    **options: Any,
) -> ItemIndex:
    """Return an index of items in random order; ``old`` are their internal ids."""
    if scheme == "title":
        return ItemIndex(scheme, _distinct([texts[i] for i in old]), users)
    if scheme == "collaborative":
        return _collaborative(histories, users, seed, **options)
    return _spectral(histories, seed, **options) if scheme == "sci" else _quantised(histories, seed, **options)


# ---- numbers


def _numbers(values: np.ndarray) -> list[str]:
    return ["", *map(str, values.tolist())]


def _ranked(order: np.ndarray, first: int) -> list[str]:
    """Codes of the items from the order in which they are numbered."""
    number = np.empty(len(order), dtype=np.int64)
    number[order - 1] = np.arange(first, first + len(order))
    return _numbers(number)


def _first_appearance(items: np.ndarray) -> np.ndarray:
    distinct, first = np.unique(items, return_index=True)
    return distinct[np.argsort(first)]


def _with_rest(order: np.ndarray, n_items: int, draw: np.random.Generator) -> np.ndarray:
    rest = np.setdiff1d(np.arange(1, n_items), order)
    return np.concatenate([order, draw.permutation(rest)])


def _distinct(texts: Sequence[str]) -> list[str]:
    """Texts, those that several items share told apart by a number."""
    seen: dict[str, int] = {}
    codes = [""]
    taken = set(texts)
    for text in texts[1:]:
        name = text or "untitled"
        seen[name] = seen.get(name, 0) + 1
        code = name if seen[name] == 1 and text else f"{name} #{seen[name]}"
        while seen[name] > 1 and code in taken:
            seen[name] += 1
            code = f"{name} #{seen[name]}"
        taken.add(code)
        codes.append(code)
    return codes


# ---- spectral clusters


def _collaborative(
    histories: Histories, users: list[str], seed: int, clusters: int = 20, cluster_size: int = 100
) -> ItemIndex:
    """Paths of tokens ``<CI k>``; the children of a node have consecutive tokens, taken breadth first (2305.06569)."""
    _at_least("item_index_clusters", clusters, 2)
    _at_least("item_index_cluster_size", cluster_size, 2)
    matrix = histories.matrix()[:, 1:]
    affinity = without_diagonal(matrix.T @ matrix)
    paths = cluster_paths(affinity, clusters, cluster_size, seed)
    # A leaf's members are children like any other: number them within the leaf.
    paths = [(*path, place) for path, place in zip(paths, _places(paths), strict=True)]
    vocabulary = max(clusters, cluster_size) + 1
    offset: dict[tuple[int, ...], int] = {}
    used = 0
    children: dict[tuple[int, ...], int] = {}
    for path in paths:
        for depth in range(len(path)):
            children[path[:depth]] = max(children.get(path[:depth], 0), path[depth] + 1)
    for node in sorted(children, key=lambda node: (len(node), node)):
        offset[node], used = used, used + children[node]
    codes = [""]
    for path in paths:
        steps = [(offset[path[:depth]] + path[depth]) % vocabulary for depth in range(len(path))]
        codes.append("".join(f"<CI{step}>" for step in steps))
    depths = np.bincount([len(path) for path in paths])
    return ItemIndex(
        "collaborative",
        codes,
        users,
        new_tokens=[f"<CI{token}>" for token in range(min(vocabulary, used))],
        info={"items_by_code_length": {str(n): int(count) for n, count in enumerate(depths) if count}},
    )


def _spectral(histories: Histories, seed: int, clusters: int = 50, cluster_size: int = 100) -> ItemIndex:
    """LightLM's SCI: users and items in one graph; cluster labels level by level, then a running number."""
    _at_least("item_index_clusters", clusters, 2)
    _at_least("item_index_cluster_size", cluster_size, 2)
    matrix = histories.matrix()[1:, 1:]
    graph = sp.bmat(
        [[without_diagonal(matrix @ matrix.T), matrix], [matrix.T, without_diagonal(matrix.T @ matrix)]], "csr"
    )
    paths = cluster_paths(graph, clusters, cluster_size, seed)
    n_users = histories.n_users - 1
    # Users and items have separate numbers in a cluster, and are told apart by their word in the prompt.
    users = [(*path, place) for path, place in zip(paths[:n_users], _places(paths[:n_users]), strict=True)]
    items = [(*path, place) for path, place in zip(paths[n_users:], _places(paths[n_users:]), strict=True)]
    depths = np.bincount([len(path) for path in items])
    return ItemIndex(
        "sci",
        ["", *(" ".join(map(str, path)) for path in items)],
        ["", *(" ".join(map(str, path)) for path in users)],
        info={"items_by_code_length": {str(n): int(count) for n, count in enumerate(depths) if count}},
    )


def _places(paths: list[tuple[int, ...]]) -> list[int]:
    """Return the running number of every entry among those with the same path."""
    seen: dict[tuple[int, ...], int] = {}
    places = []
    for path in paths:
        places.append(seen.get(path, 0))
        seen[path] = places[-1] + 1
    return places


# ---- product quantisation


def _quantised(
    histories: Histories, seed: int, factors: int = 64, subspaces: int = 4, codewords: int = 20
) -> ItemIndex:
    """LightLM's GCI: standardised BPR-MF vectors; the nearest codeword of each part, then a running number."""
    from sklearn.cluster import KMeans

    _at_least("item_index_codewords", codewords, 2)
    if factors % subspaces:
        raise ConfigError(
            f"item_index_factors={factors} cannot be cut into item_index_subspaces={subspaces} equal parts."
        )
    codes = []
    duplicates = 0
    for vectors in bpr_vectors(histories, factors, seed):
        scaled = (vectors - vectors.mean(0)) / np.maximum(vectors.std(0), 1e-12)
        parts = np.split(scaled, subspaces, axis=1)
        labels = [
            KMeans(min(codewords, len(part)), random_state=seed, n_init=1).fit_predict(part).tolist() for part in parts
        ]
        paths = list(zip(*labels, strict=True))
        places = _places(paths)
        duplicates = max(places)
        codes.append(["", *(" ".join(map(str, (*path, place))) for path, place in zip(paths, places, strict=True))])
    return ItemIndex("gci", codes[1], codes[0], info={"largest_running_number": duplicates})


def bpr_vectors(
    histories: Histories, factors: int, seed: int, epochs: int = 50, learning_rate: float = 5e-3, batch: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix factorisation with the BPR loss (Rendle et al., 2009) on the training interactions.

    Returns
    -------
    users, items : numpy.ndarray of float32, shapes (n_users - 1, factors) and (n_items - 1, factors)
        Without the padding row.
    """
    import torch
    from torch.nn import functional

    draw = torch.Generator().manual_seed(seed)
    user, item = (torch.from_numpy(ids[histories.train]) - 1 for ids in (histories.user, histories.item))
    known = (user * histories.n_items + item).sort().values
    tables = [torch.randn(n - 1, factors, generator=draw) * 0.1 for n in (histories.n_users, histories.n_items)]
    for table in tables:
        table.requires_grad_(True)
    optimizer = torch.optim.Adam(tables, lr=learning_rate)
    for _ in range(epochs):
        order = torch.randperm(len(user), generator=draw)
        for rows in order.split(batch):
            other = torch.randint(histories.n_items - 1, (len(rows),), generator=draw)
            u, i = user[rows], item[rows]
            key = u * histories.n_items + other
            place = torch.searchsorted(known, key).clamp(max=len(known) - 1)
            fresh = known[place] != key
            margin = (tables[0][u] * (tables[1][i] - tables[1][other])).sum(1)
            loss = -(functional.logsigmoid(margin) * fresh).sum() / fresh.sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return tables[0].detach().numpy(), tables[1].detach().numpy()


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key}={value} must be at least {least}.")


CODE_BYTES = 64  # codes are stored in rows of a multiple of this many bytes


def pack(index: ItemIndex) -> torch.Tensor:
    """Return the codes of items and then users as rows of UTF-8, padded with 0; shape (n_items + n_users, width)."""
    rows = [code.encode() for code in (*index.items, *index.users)]
    width = -(-max(map(len, rows)) // CODE_BYTES) * CODE_BYTES
    table = np.zeros((len(rows), width), dtype=np.uint8)
    for place, row in enumerate(rows):
        table[place, : len(row)] = np.frombuffer(row, dtype=np.uint8)
    return torch.from_numpy(table)


def unpack(packed: torch.Tensor, index: ItemIndex) -> ItemIndex:
    """Return an index with the codes of :func:`pack` in place of its own."""
    texts = [bytes(row[row > 0]).decode() for row in packed.cpu().numpy()]
    n_items = len(index.items)
    return replace(index, items=texts[:n_items], users=texts[n_items:])


def labels_of(codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return token ids of every code, (n_items, T), -100 after its end."""
    labels = torch.full((len(codes), max(map(len, codes))), NO_TOKEN)
    for item, code in enumerate(codes):
        labels[item, : len(code)] = torch.tensor(code, dtype=torch.long)
    return labels
