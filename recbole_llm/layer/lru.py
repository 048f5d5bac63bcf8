"""Linear recurrent unit: h_t = lambda h_{t-1} + gamma (B x_t + b), y_t = Re(C h_t + c), lambda complex and diagonal.

Orvieto et al., arXiv 2303.06349, in the form that LRURec (Yue et al., arXiv 2310.02367) gives it. The recurrence runs
from left to right, so with right padding every state up to the last item is right without a mask.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from recbole_llm.layer.packing import Packing, has_static_shapes


def linear_recurrence(
    decay: torch.Tensor, inputs: torch.Tensor, state: torch.Tensor | None = None, chunk: int | None = None
) -> torch.Tensor:
    """States h_t = decay * h_{t-1} + inputs_t of a diagonal recurrence, differentiable in all three arguments.

    Parameters
    ----------
    decay : torch.Tensor, shape (H,), complex or real
    inputs : torch.Tensor, shape (B, L, H), same dtype
    state : torch.Tensor, shape (B, H), optional
        State before the first input; 0 if not given.
    chunk : int, optional
        The scan has two levels: all chunks of this many steps at once, then from chunk to chunk, so about
        ``chunk + L / chunk`` operations follow each other. Default: sqrt(L) on an accelerator, where the number of
        launches counts; L on a CPU, where one pass over the memory is several times faster than two.

    Returns
    -------
    torch.Tensor, shape (B, L, H)
    """
    if state is not None:
        inputs = torch.cat([inputs[:, :1] + (decay * state)[:, None], inputs[:, 1:]], dim=1)
    length = inputs.shape[1]
    if chunk is None:
        chunk = length if inputs.device.type == "cpu" else math.isqrt(max(length - 1, 0)) + 1
    return _Recurrence.apply(decay, inputs, chunk)  # type: ignore[no-untyped-call]


class _Recurrence(torch.autograd.Function):
    """The gradient of a recurrence is the same recurrence, with the conjugate decay, from right to left."""

    @staticmethod
    def forward(ctx: Any, decay: torch.Tensor, inputs: torch.Tensor, chunk: int) -> torch.Tensor:
        states = _scan(decay, inputs, chunk)
        ctx.save_for_backward(decay, states)
        ctx.chunk = chunk
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        decay, states = ctx.saved_tensors
        grad_inputs = _scan(decay.conj().resolve_conj(), grad, ctx.chunk, reverse=True)
        grad_decay = torch.linalg.vecdot(states[:, :-1], grad_inputs[:, 1:], dim=1).sum(0)
        return grad_decay, grad_inputs, None


def _scan(decay: torch.Tensor, inputs: torch.Tensor, chunk: int, reverse: bool = False) -> torch.Tensor:
    batch, length, width = inputs.shape
    chunks = -(-length // chunk)
    if chunks * chunk > length:
        inputs = functional.pad(inputs, (0, 0, 0, chunks * chunk - length))
    inputs = inputs.reshape(batch, chunks, chunk, width)
    states = torch.empty_like(inputs)
    within, across = list(range(chunk)), list(range(chunks))
    if reverse:
        within.reverse()
        across.reverse()

    # Every chunk from a zero state.
    states[:, :, within[0]] = inputs[:, :, within[0]]
    for before, now in pairwise(within):
        torch.addcmul(inputs[:, :, now], decay, states[:, :, before], out=states[:, :, now])
    if chunks > 1:
        # The state that each chunk hands to the next one, then what it adds to the other steps there.
        powers = decay.expand(chunk, width).cumprod(0)
        edge = within[-1]
        for before, now in pairwise(across):
            states[:, now, edge].addcmul_(powers[-1], states[:, before, edge])
        if reverse:
            states[:, :-1, 1:].addcmul_(powers[:-1].flip(0), states[:, 1:, :1])
        else:
            states[:, 1:, :-1].addcmul_(powers[:-1], states[:, :-1, -1:])
    return states.view(batch, chunks * chunk, width)[:, :length]


class LRU(nn.Module):
    """Linear recurrent unit from R^D to R^D through H complex channels.

    All parameters are real. ``B`` is a layer of 2H outputs, real and imaginary part of each channel side by side;
    ``C`` has the columns Re C and -Im C in the same order, which is what Re(C h) needs; the imaginary part of the
    papers' c reaches no output and is left out.

    Parameters
    ----------
    width : int
        D.
    state_size : int
        H.
    r_min, r_max : float
        The initial lambda lie uniformly in the ring between these radii.
    """

    def __init__(self, width: int, state_size: int, r_min: float = 0.8, r_max: float = 0.99) -> None:
        super().__init__()
        # 1 - rand: above 0, the logarithms are finite.
        radius = torch.sqrt((1 - torch.rand(state_size)) * (r_max**2 - r_min**2) + r_min**2)
        self.nu_log = nn.Parameter(torch.log(-torch.log(radius)))
        self.theta_log = nn.Parameter(torch.log(2 * math.pi * (1 - torch.rand(state_size))))
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-(radius**2)))
        self.B = nn.Linear(width, 2 * state_size)
        self.C = nn.Linear(2 * state_size, width)

    def decay(self) -> torch.Tensor:
        """Lambda = exp(-exp(nu) + i exp(theta)), complex, shape (H,); its absolute value is below 1."""
        return torch.polar(torch.exp(-torch.exp(self.nu_log)), torch.exp(self.theta_log))

    def _in_real_numbers(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the recurrence as sums over all earlier steps, for exported graphs, which have no complex numbers.

        Real and imaginary parts stand side by side, (B, L, 2 H), in the inputs and in what is returned.
        """
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        apart = steps[:, None] - steps
        radius = torch.exp(-torch.exp(self.nu_log)) ** apart.clamp(min=0)[..., None]
        radius = radius * (apart >= 0)[..., None]
        angle = torch.exp(self.theta_log) * apart[..., None]
        cosine, sine = radius * angle.cos(), radius * angle.sin()
        real, imaginary = inputs.unflatten(-1, (-1, 2)).unbind(-1)

        def summed(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            return torch.einsum("tsh,bsh->bth", weights, values)

        parts = (
            summed(cosine, real) - summed(sine, imaginary),
            summed(cosine, imaginary) + summed(sine, real),
        )
        return torch.stack(parts, dim=-1).flatten(-2)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None = None, packing: Packing | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run over a sequence, or with L = 1 and a state one step further.

        There are no complex numbers of 16 bits: the layer leaves autocast.

        Parameters
        ----------
        x : torch.Tensor, shape (B, L, D), or (N, D) with a packing
        state : torch.Tensor, complex, shape (B, H), optional
            State before the first step.
        packing : Packing, optional

        Returns
        -------
        y : torch.Tensor, shape of x
        states : torch.Tensor, complex, shape (B, L, H)
            ``states[:, t]`` is the state to go on from after step t.
        """
        with torch.autocast(x.device.type, enabled=False):
            gamma = torch.exp(self.gamma_log).repeat_interleave(2)
            inputs = functional.linear(x.to(gamma.dtype), gamma[:, None] * self.B.weight, gamma * self.B.bias)
            if packing is not None:
                inputs = packing.pad(inputs)
            if state is None and has_static_shapes():
                outputs = self._in_real_numbers(inputs)
                return self.C(outputs if packing is None else packing.pack(outputs)), outputs
            states = linear_recurrence(self.decay(), torch.view_as_complex(inputs.unflatten(-1, (-1, 2))), state)
            outputs = torch.view_as_real(states).flatten(-2)
            return self.C(outputs if packing is None else packing.pack(outputs)), states
