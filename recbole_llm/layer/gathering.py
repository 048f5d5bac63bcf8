"""Rows of a table, with a gradient for those rows only.

The gradient of an embedding table is as large as the table, although a batch reads few of its rows. A row-sparse
gradient (a sparse COO tensor with one sparse dimension) costs what the batch reads, whatever the table's size.
"""

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


def gather_rows(table: torch.Tensor, ids: torch.Tensor, sparse: bool = False) -> torch.Tensor:
    """Return ``table[ids]``.

    Parameters
    ----------
    table : torch.Tensor, shape (n, ...)
    ids : torch.LongTensor, any shape
    sparse : bool
        Whether the gradient of ``table`` is row-sparse. Only a parameter itself can have one: where the table is
        computed from others, its gradient is dense.

    Returns
    -------
    torch.Tensor, shape (*ids.shape, ...)

    Examples
    --------
    >>> table = torch.ones(1000, 2, requires_grad=True)
    >>> gather_rows(table, torch.tensor([3, 5, 3]), sparse=True).sum().backward()
    >>> table.grad.coalesce().indices().tolist()
    [[3, 5]]
    """
    if sparse and table.is_leaf and table.requires_grad:
        return _Gather.apply(table, ids)  # type: ignore[no-untyped-call]
    return functional.embedding(ids, table) if table.dim() == 2 else table[ids]


def row_sparse(ids: torch.Tensor, values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return a gradient of ``table`` that is ``values`` (n, ...) in the rows ``ids`` (n,), added up; 0 elsewhere."""
    # The ids have been used as indices before: they need no second check.
    return torch.sparse_coo_tensor(ids[None], values, table.shape, check_invariants=False)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.table = table.detach()  # type: ignore[attr-defined]
        return table.index_select(0, ids.reshape(-1)).view(*ids.shape, *table.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ids,) = ctx.saved_tensors  # type: ignore[attr-defined]
        table = ctx.table  # type: ignore[attr-defined]
        return row_sparse(ids.reshape(-1), grad.reshape(-1, *table.shape[1:]), table), None
