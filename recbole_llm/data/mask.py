"""What may not be recommended to a row: its whole history, unless ``mask_history`` is False. Decided here only.

Loaders look a row's history up once and pass it on in two forms. The *pairs* ``(row, item)`` go to whoever ranks final
scores: the evaluator, which reports results with and without the mask, and ``recommend``. The field
:data:`EXCLUDED` of the batch goes to models with ``reads_excluded``, which choose items before they score (candidates
of a ranker, names in an answer, lists that are combined). They also get :data:`WHOLE_HISTORY`, whatever
``mask_history`` says: a prompt that lists a history does not offer it to choose from.
"""

import torch
from recbole.data.interaction import Interaction

EXCLUDED, WHOLE_HISTORY = "excluded_items", "whole_history"
# Row and item, each of shape (pairs,), rows ascending, each pair once.
Pairs = tuple[torch.Tensor, torch.Tensor]


def table_of(pairs: Pairs, n_rows: int) -> torch.Tensor:
    """Pairs as a table: items of each row, right padded with 0; shape (n_rows, W), W at least 1."""
    row, item = pairs
    counts = torch.bincount(row, minlength=n_rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = item.new_zeros(n_rows, max(1, int(counts.max()) if n_rows else 1))
    table[row, place] = item
    return table


def exclude_from_choice(interaction: Interaction, history: Pairs, mask_history: bool) -> Interaction:
    """Add :data:`WHOLE_HISTORY` to a batch, and :data:`EXCLUDED`: the same, or nothing without ``mask_history``."""
    table = table_of(history, len(interaction))
    left_out = table if mask_history else torch.zeros_like(table[:, :1])
    interaction.update(Interaction({EXCLUDED: left_out, WHOLE_HISTORY: table}))
    return interaction


def excluded(interaction: Interaction, history_field: str, mask_history: bool) -> torch.Tensor:
    """Items that a model must not choose, padded with 0; shape (B, W).

    Batches of this package's loaders have it. For others, without :data:`EXCLUDED`, the items of ``history_field`` are
    excluded under ``mask_history``.

    Parameters
    ----------
    interaction : Interaction
    history_field : str
        Field with the items that the model reads, shape (B, L).
    mask_history : bool
        Setting of the model's own configuration.
    """
    if EXCLUDED in interaction:
        return interaction[EXCLUDED]
    history = interaction[history_field]
    return history if mask_history else torch.zeros_like(history[:, :1])


def whole_history(interaction: Interaction, history_field: str) -> torch.Tensor:
    """All items that a row's user had before, padded with 0, shape (B, W); :func:`excluded` has the parameters.

    Batches of other loaders tell no more than the items of ``history_field``.
    """
    return interaction[WHOLE_HISTORY if WHOLE_HISTORY in interaction else history_field]


def without(scores: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Scores (B, n_items) with ``-inf`` at the items (B, W) of each row, and at padding; a copy."""
    masked = scores.scatter(1, items, -torch.inf)
    masked[:, 0] = -torch.inf
    return masked


def remove_history(scores: torch.Tensor, history: Pairs) -> None:
    """Set scores (B, n_items) of history items to ``-inf``, in place."""
    scores[history[0].to(scores.device), history[1].to(scores.device)] = -torch.inf
