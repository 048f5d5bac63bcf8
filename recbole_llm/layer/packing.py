"""The real positions of a padded batch, one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

# More groups than this are not neighbours of one length but rows in no order.
MAX_GROUPS = 16


_static: ContextVar[bool] = ContextVar("static", default=False)


@contextmanager
def static_shapes() -> Iterator[None]:
    """Make layers work on whole padded batches inside: the shapes of an exported graph may not depend on its data."""
    token = _static.set(True)
    try:
        yield
    finally:
        _static.reset(token)


def has_static_shapes() -> bool:
    """Whether this is inside :func:`static_shapes`."""
    return _static.get()


def longest(length: torch.Tensor, width: int | None = None) -> int:
    """Return the length of the longest row, or ``width`` inside :func:`static_shapes`.

    Parameters
    ----------
    length : torch.LongTensor, shape (B,)
    width : int, optional
        Of the padded batch.
    """
    return width if width is not None and has_static_shapes() else int(length.max())


class Packing(NamedTuple):
    """The N real positions of a right-padded batch: all layers but the recurrence run only on these.

    ``places`` counts the positions row by row, shape (N,); the batch has ``rows`` rows of ``steps`` positions.
    """

    places: torch.Tensor
    rows: int
    steps: int
    lengths: torch.Tensor

    @classmethod
    def of(cls, length: torch.Tensor, width: int | None = None) -> "Packing":
        """From the number of real positions of every row, shape (B,), of a batch padded to ``width``."""
        steps = longest(length, width)
        mask = torch.arange(steps, device=length.device) < length[:, None]
        return cls(mask.flatten().nonzero()[:, 0], length.shape[0], steps, length)

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (B, L, D), 0 elsewhere."""
        padded = packed.new_zeros(self.rows * self.steps, packed.shape[1])
        return padded.index_copy(0, self.places, packed).view(self.rows, self.steps, -1)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(B, L or more, ...) -> (N, ...)."""
        return padded[:, : self.steps].flatten(0, 1).index_select(0, self.places)

    def mask(self) -> torch.Tensor:
        """Which positions are real, (B, L)."""
        real = torch.zeros(self.rows * self.steps, dtype=torch.bool, device=self.places.device)
        return real.index_fill(0, self.places, True).view(self.rows, self.steps)

    def row(self) -> torch.Tensor:
        """Row of each real position, (N,)."""
        return self.places // self.steps

    def position(self, ending_at: int | None = None) -> torch.Tensor:
        """Place of each real position in its row, (N,), from 0; or such that every row ends at ``ending_at``."""
        position = self.places % self.steps
        if ending_at is None:
            return position
        return position + (ending_at + 1 - self.lengths)[self.row()]

    def last(self) -> torch.Tensor:
        """Index of the last real position of each row, (B,)."""
        return self.lengths.cumsum(0) - 1

    def shared_rows(self) -> tuple[torch.Size, torch.Tensor]:
        """Place the sequences, several to a row, into rows as long as the longest: first fit, long ones first.

        Returns
        -------
        shape : torch.Size
            How many rows, and their length.
        place : torch.LongTensor, shape (N,)
            Where each real position is among all positions of these rows.
        """
        lengths = self.lengths.tolist()
        free: list[int] = []  # of each row
        starts = [0] * len(lengths)
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            row = next((row for row, space in enumerate(free) if space >= lengths[number]), len(free))
            if row == len(free):
                free.append(self.steps)
            starts[number] = (row + 1) * self.steps - free[row]
            free[row] -= lengths[number]
        start = torch.tensor(starts, device=self.places.device)
        return torch.Size((len(free), self.steps)), start[self.row()] + self.position()

    def groups(self) -> list["Packing"]:
        """Split neighbouring rows of similar length into separate packings, in order.

        Few of them where the rows are sorted by length; all of the rows where padding costs less than a group.
        """
        if has_static_shapes():
            return [self]
        length = self.lengths
        size = (2 * length.clamp(min=4).float().log2()).ceil()  # steps of a factor of 1.4
        _, rows = size.unique_consecutive(return_counts=True)
        if len(rows) > MAX_GROUPS:
            return [self]
        return [Packing.of(part) for part in length.split(rows.tolist())]
