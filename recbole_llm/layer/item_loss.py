"""Training losses: the next item against the catalogue, by one of three losses.

With hidden states h (N, d), item vectors E (n_items, d), scores s_i = h E_i (+ b_i) and the target t of each row:

``ce``
    -log softmax(s)_t over the whole catalogue.
``sampled_softmax``
    The same with the normaliser estimated from K sampled negatives S (Bengio and Senecal, 2008):
    ``-s_t + log(exp(s_t) + sum_{j in S, j != t} exp(s_j - log m_j))``, where m_j is how often item j is expected among
    the K draws (the logQ correction). The sum is an unbiased estimate of that over all items but t.
``gbce``
    Generalised binary cross-entropy (Petrov and Macdonald, RecSys 2023, arXiv 2308.07192): K uniform negatives,
    alpha = K / (items - 1), beta = alpha (t (1 - 1 / alpha) + 1 / alpha) and
    ``-(beta log sigmoid(s_t) + sum_j log(1 - sigmoid(s_j))) / (K + 1)``. t = 0 is binary cross-entropy.

On a large catalogue a sampled loss gives its table a row-sparse gradient (``sparse_item_gradients``), so that a step
costs what it samples and not what there is.

Padding (item 0) is never sampled. Draws come from torch's global generator of the device, which a run seeds and a
checkpoint keeps.
"""

from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.registry import property_file, props_dir
from recbole_llm.config.schema.blocks import Loss, NegativeDistribution
from recbole_llm.config.values import choice
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.layer.cross_entropy import at_once, linear_cross_entropy
from recbole_llm.layer.gathering import gather_rows, row_sparse

# Keys of the configuration and what they are where a model's property file does not have them.
# Gathering one vector takes as long as this many scores of a matrix product (measured on a CPU).
WHOLE_TABLE = 64
# From how many items on a gradient of the whole table costs more than that of the rows of a usual batch.
SPARSE_FROM = 100_000
LAZY_LEARNERS = ("adam", "adamw", "sparse_adam")
# A draw of distinct items permutes all of them up to this many times the number wanted.
PERMUTED = 64


class ItemLoss(nn.Module):
    """Loss of hidden states against a table of item vectors.

    Parameters
    ----------
    n_items : int
        Rows of the table, padding included.
    loss : {"ce", "sampled_softmax", "gbce"}
    num_negatives : int
        K, at least 1. Shared uniform negatives are distinct and never more than there are items: then they are all
        items, and sampled softmax is cross-entropy.
    negatives : {"auto", "shared", "per_target"}
        One set of negatives for all rows of a batch (a matrix product), or one for each row, without the row's
        target. "auto" is shared for sampled softmax and per target for gBCE, which hardly learns from
        shared ones: every row of a batch pushes the same few items down at once.
    negative_distribution : {"uniform", "popularity", "in_batch"}
        Of the draws: over the catalogue; by training targets, every item at least as one; or the targets of other rows
        (K of them at most), of the same distribution.
    negative_alpha : float
        Exponent of the popularity.
    logq : bool
        Whether sampled softmax corrects for the distribution of the draws.
    gbce_t : float
        Calibration of gBCE, between 0 and 1: 1 gives probabilities as calibrated as without sampling.
    target_counts : numpy.ndarray, shape (n_items,), optional
        How often each item is a target in training; needed for "popularity" and "in_batch".
    pad_class : bool
        Whether item 0 is a class of the full softmax.
    sparse : bool
        Whether table and bias get row-sparse gradients, where they are parameters themselves.

    Raises
    ------
    ConfigError
        For an invalid value, or two that contradict each other.
    """

    share: torch.Tensor
    cumulative: torch.Tensor

    def __init__(
        self,
        n_items: int,
        loss: str = "ce",
        num_negatives: int = 256,
        negatives: str = "auto",
        negative_distribution: str = "uniform",
        negative_alpha: float = 1.0,
        logq: bool = True,
        gbce_t: float = 0.75,
        target_counts: np.ndarray | None = None,
        pad_class: bool = False,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        given = {"loss": loss, "negatives": negatives, "negative_distribution": negative_distribution}
        self.loss = choice(given, "loss", get_args(Loss))
        choice(given, "negatives", ["auto", "shared", "per_target"])
        self.per_target = negatives == "per_target" or (negatives == "auto" and loss == "gbce")
        self.distribution = choice(given, "negative_distribution", get_args(NegativeDistribution))
        self.n_real = n_items - 1
        self.sparse = sparse and loss != "ce"
        self.logq, self.gbce_t, self.pad_class = bool(logq), float(gbce_t), pad_class
        if num_negatives < 1:
            raise ConfigError(f"num_negatives={num_negatives!r} is too small: at least 1 is needed.")
        if not 0 <= self.gbce_t <= 1:
            raise ConfigError(f"gbce_t={gbce_t!r} must lie between 0 (binary cross-entropy) and 1 (calibrated).")
        if loss == "gbce" and negative_distribution != "uniform":
            raise ConfigError(
                f"negative_distribution={negative_distribution!r} contradicts loss='gbce', whose calibration "
                "holds for uniform negatives only: use uniform, or loss=sampled_softmax."
            )
        if loss != "ce" and negative_distribution == "in_batch" and self.per_target:
            raise ConfigError(
                "negative_distribution='in_batch' has one set of negatives for a batch: drop negatives=per_target."
            )
        self.num_negatives = int(num_negatives)
        if self.distribution == "uniform" and not self.per_target:
            self.num_negatives = min(self.num_negatives, self.n_real)
        if loss != "ce" and self.distribution != "uniform":
            if target_counts is None:
                raise ConfigError(f"negative_distribution={negative_distribution!r} needs counts of training targets.")
            # Negatives of the batch come as often as targets do, whatever negative_alpha is.
            power = 1.0 if self.distribution == "in_batch" else float(negative_alpha)
            # One at least: an item that is never drawn would never be pushed down.
            weight = np.maximum(np.asarray(target_counts, dtype=np.float64)[1:], 1.0) ** power
            share = np.concatenate([[0.0], weight / weight.sum()])
            self.register_buffer("share", torch.from_numpy(share), persistent=False)
            self.register_buffer("cumulative", torch.from_numpy(share.cumsum()), persistent=False)

    @classmethod
    def from_config(
        cls, config: Config, dataset: HistoryDataset, pad_class: bool = False, reads_rows: bool = False
    ) -> "ItemLoss":
        """Return the configured loss; ``props/common/item_loss.yaml`` holds the defaults.

        Parameters
        ----------
        config : Config
        dataset : recbole Dataset
            The training split.
        pad_class : bool
            As the class's.
        reads_rows : bool
            Whether the model reads its table by :func:`recbole_llm.layer.gathering.gather_rows` and nothing else, so
            that gradients may be row-sparse; it then says so in ``row_sparse_parameters``.

        Raises
        ------
        ConfigError
            Also if RecBole's ``loss_type`` contradicts ``loss``.
        """
        defaults = property_file(props_dir() / "common" / "item_loss.yaml")
        values = {key: default if config[key] is None else config[key] for key, default in defaults.items()}
        loss_type = values.pop("loss_type")
        if loss_type != "CE":
            raise ConfigError(
                f"loss_type={loss_type!r} is RecBole's key, and {config['model']} does not take its loss from there: "
                f"leave it at 'CE' and set loss to one of {', '.join(get_args(Loss))}, with num_negatives, gbce_t "
                "and so on."
            )
        wanted = values.pop("sparse_item_gradients")
        # RecBole's key; the other optimizers take dense gradients or have no moments that would decay.
        lazy = str(config["learner"]).lower() in LAZY_LEARNERS
        sparse = reads_rows and lazy and (wanted is True or (wanted == "auto" and dataset.item_num >= SPARSE_FROM))
        counts = None
        if values["loss"] != "ce" and values["negative_distribution"] != "uniform":
            counts = np.bincount(np.asarray(dataset.inter_feat[dataset.iid_field]), minlength=dataset.item_num)
        return cls(dataset.item_num, **values, target_counts=counts, pad_class=pad_class, sparse=sparse)

    def forward(
        self, hidden: torch.Tensor, table: torch.Tensor, target: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean loss over the rows.

        Parameters
        ----------
        hidden : torch.Tensor, shape (N, d), N at least 1
        table : torch.Tensor, shape (n_items or more, d)
            Row 0 is padding; rows beyond the catalogue are no classes.
        target : torch.LongTensor, shape (N,)
            Items from 1 on.
        bias : torch.Tensor, shape (n_items,), optional

        Returns
        -------
        torch.Tensor, scalar
        """
        if self.loss == "ce":
            return linear_cross_entropy(hidden, table[: self.n_real + 1], bias, target, pad_class=self.pad_class)
        items, expected = self.draw(target)
        sparse = self.sparse and table.is_leaf
        if self.per_target:
            scores = scores_of(hidden, table, torch.cat([target[:, None], items], dim=1), sparse)
            positive, negative = scores[:, 0], scores[:, 1:]
        else:
            # One look into the table, and so one gradient of its size.
            looked_up = gather_rows(table, torch.cat([target, items]), sparse)
            of_target, of_items = looked_up.split([len(target), len(items)])
            positive, negative = (hidden * of_target).sum(-1), hidden @ of_items.T
        wide = torch.promote_types(positive.dtype, torch.float32)  # 16 bits under autocast
        positive, negative = positive.to(wide), negative.to(wide)
        if bias is not None:
            positive = positive + gather_rows(bias, target, sparse)
            negative = negative + gather_rows(bias, items, sparse)
        hit = items == target[:, None]
        if self.loss == "gbce":
            others = functional.softplus(negative).masked_fill(hit, 0.0).sum(1)
            return ((self.beta * functional.softplus(-positive) + others) / (self.num_negatives + 1)).mean()
        if self.logq:
            negative = negative - expected.log().to(wide)
        logits = torch.cat([positive[:, None], negative.masked_fill(hit, -torch.inf)], dim=1)
        return functional.cross_entropy(logits, torch.zeros_like(target))

    @property
    def beta(self) -> float:
        """Power of the positive's probability in gBCE: between the sampling rate (t = 1) and 1 (t = 0)."""
        alpha = min(self.num_negatives / (self.n_real - 1), 1.0)
        return alpha * (self.gbce_t * (1 - 1 / alpha) + 1 / alpha)

    def draw(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Negatives of a batch.

        Parameters
        ----------
        target : torch.LongTensor, shape (N,)

        Returns
        -------
        items : torch.LongTensor, shape (K,) shared or (N, K) per target
        expected : torch.Tensor, float64, of the same shape, or of one element
            How often the item is expected among the K draws.
        """
        device, count = target.device, self.num_negatives
        if self.distribution == "in_batch":
            items = target[torch.randperm(len(target), device=device)[:count]]
            return items, len(items) * self.share[items]
        if self.distribution == "popularity":
            size = (len(target), count) if self.per_target else (count,)
            at = torch.rand(size, dtype=torch.float64, device=device)
            items = torch.searchsorted(self.cumulative, at, right=True).clamp(1, self.n_real)
            return items, count * self.share[items]
        if self.per_target:
            # From the items but the target: what lies above it moves up by one.
            items = torch.randint(1, self.n_real, (len(target), count), device=device)
            items += items >= target[:, None]
            rate = count / (self.n_real - 1)
        else:
            items = distinct_items(self.n_real, count, device)
            rate = count / self.n_real
        return items, torch.tensor(rate, dtype=torch.float64, device=device)


def distinct_items(n: int, count: int, device: torch.device) -> torch.Tensor:
    """Draw ``count`` distinct numbers from 1 to n, every set of them equally likely."""
    if n <= PERMUTED * count:
        return 1 + torch.randperm(n, device=device)[:count]
    while True:
        # With twice as many draws the wanted number of distinct ones is there but once in a blue moon.
        drawn = torch.randint(1, n + 1, (2 * count,), device=device)
        values, order = drawn.sort(stable=True)
        new = torch.ones_like(values, dtype=torch.bool)
        new[1:] = values[1:] != values[:-1]
        first = order[new].sort().values[:count]
        if len(first) == count:
            return drawn[first]


def scores_of(hidden: torch.Tensor, table: torch.Tensor, items: torch.Tensor, sparse: bool = False) -> torch.Tensor:
    """Scores of some items for every row; the (N, K, d) vectors of the items are never in memory at once.

    Parameters
    ----------
    hidden : torch.Tensor, shape (N, d)
    table : torch.Tensor, shape (n_items, d)
    items : torch.LongTensor, shape (N, K)
    sparse : bool
        As :func:`recbole_llm.layer.gathering.gather_rows`.

    Returns
    -------
    torch.Tensor, shape (N, K)
    """
    with torch.autocast(hidden.device.type, enabled=False):  # it gathers more than it multiplies
        return _ScoresOf.apply(hidden.to(table.dtype), table, items, sparse and table.is_leaf)  # type: ignore[no-untyped-call]


class _ScoresOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, table: torch.Tensor, items: torch.Tensor, sparse: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, table, items)
        ctx.sparse = sparse
        rows, whole = _piece(table, items, sparse)
        parts = []
        for h, i in zip(hidden.split(rows), items.split(rows), strict=True):
            parts.append((h @ table.T).gather(1, i) if whole else torch.bmm(table[i], h[..., None]).squeeze(-1))
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, table, items = ctx.saved_tensors
        place, read = items, None
        if ctx.sparse:  # the gradient of a table of the items that are read
            read, place = items.unique(return_inverse=True)
        grad_hidden = torch.empty_like(hidden)
        grad_table = torch.zeros_like(table) if read is None else table.new_zeros(len(read), table.shape[1])
        rows, whole = _piece(table, items, ctx.sparse)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            h, i, g = hidden[part], items[part], grad[part]
            if whole:
                scores = h.new_zeros(len(h), len(table)).scatter_add_(1, i, g)
                grad_hidden[part] = scores @ table
                grad_table.addmm_(scores.T, h)
            else:
                grad_hidden[part] = torch.bmm(g[:, None], table[i]).squeeze(1)
                grad_table.index_add_(0, place[part].reshape(-1), (g[..., None] * h[:, None]).flatten(0, 1))
        return grad_hidden, grad_table if read is None else row_sparse(read, grad_table, table), None, None


def _piece(table: torch.Tensor, items: torch.Tensor, sparse: bool) -> tuple[int, bool]:
    """Rows to score at once, and whether all items are scored for them: that is faster where the table is small."""
    (n_items, width), wanted = table.shape, items.shape[1]
    whole = not sparse and n_items <= WHOLE_TABLE * wanted
    return max(1, at_once(table) // (n_items if whole else wanted * width)), whole
