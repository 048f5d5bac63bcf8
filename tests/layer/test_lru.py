import pytest
import torch

from recbole_llm.layer.lru import LRU, linear_recurrence
from recbole_llm.layer.packing import Packing


def loop(decay, inputs, state=None):
    """The recurrence as it is written."""
    state = torch.zeros_like(inputs[:, 0]) if state is None else state
    states = []
    for now in inputs.unbind(1):
        state = decay * state + now
        states.append(state)
    return torch.stack(states, 1)


def problem(length, dtype=torch.complex128, batch=3, width=5):
    generator = torch.Generator().manual_seed(length)
    decay = torch.polar(
        0.3 + 0.69 * torch.rand(width, generator=generator, dtype=torch.float64),
        6.28 * torch.rand(width, generator=generator, dtype=torch.float64),
    ).to(dtype)
    inputs = torch.randn(batch, length, width, generator=generator, dtype=torch.complex128).to(dtype)
    state = torch.randn(batch, width, generator=generator, dtype=torch.complex128).to(dtype)
    return decay, inputs, state


@pytest.mark.parametrize("length", [*range(1, 18), 50, 200])
def test_scan_is_the_recurrence(length):
    for dtype, tolerance in ((torch.complex128, 1e-12), (torch.complex64, 2e-5)):
        decay, inputs, state = problem(length, dtype)
        for chunk in {None, 1, 2, 5, 16, length}:
            for start in (None, state):
                found = linear_recurrence(decay, inputs, start, chunk=chunk)
                torch.testing.assert_close(found, loop(decay, inputs, start), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8])
@pytest.mark.parametrize("length", [1, 7, 12])
def test_gradients_are_those_of_the_recurrence(length, chunk):
    tensors = [tensor.requires_grad_() for tensor in problem(length, batch=2, width=3)]
    assert torch.autograd.gradcheck(lambda *t: linear_recurrence(*t, chunk=chunk), tensors)
    weight = torch.randn(2, length, 3, dtype=torch.complex128)
    found = torch.autograd.grad((linear_recurrence(*tensors, chunk=chunk) * weight).sum().real, tensors)
    expected = torch.autograd.grad((loop(*tensors) * weight).sum().real, tensors)
    torch.testing.assert_close(found, expected)


def test_real_recurrence():
    decay, inputs, state = (tensor.real.contiguous() for tensor in problem(11))
    torch.testing.assert_close(linear_recurrence(decay, inputs, state, chunk=4), loop(decay, inputs, state))


@pytest.fixture
def lru():
    torch.manual_seed(3)
    return LRU(6, 10).double()


def test_layer_is_the_formula(lru):
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    y, states = lru(x)
    decay = torch.exp(-torch.exp(lru.nu_log) + 1j * torch.exp(lru.theta_log))
    b, bias = torch.complex(lru.B.weight[::2], lru.B.weight[1::2]), torch.complex(lru.B.bias[::2], lru.B.bias[1::2])
    c = torch.complex(lru.C.weight[:, ::2], -lru.C.weight[:, 1::2])
    inputs = torch.exp(lru.gamma_log) * (x.to(b.dtype) @ b.T + bias)
    torch.testing.assert_close(states, loop(decay, inputs))
    torch.testing.assert_close(y, (loop(decay, inputs) @ c.T).real + lru.C.bias)


def test_initial_values():
    lru = LRU(2, 4000, r_min=0.4, r_max=0.9).double()
    decay = lru.decay()
    assert 0.4 <= decay.abs().min() < 0.41 and 0.89 < decay.abs().max() <= 0.9
    # Uniform on the ring: half of its area lies outside the middle radius.
    assert 0.46 < (decay.abs() ** 2 > (0.4**2 + 0.9**2) / 2).double().mean() < 0.54
    torch.testing.assert_close(torch.exp(lru.gamma_log) ** 2, 1 - decay.abs() ** 2, rtol=1e-5, atol=1e-6)


def test_going_on_from_a_state_equals_the_whole_sequence(lru):
    x = torch.randn(3, 12, 6, dtype=torch.float64)
    y, states = lru(x)
    head, middle = lru(x[:, :5])
    tail, _ = lru(x[:, 5:], middle[:, -1])
    torch.testing.assert_close(torch.cat([head, tail], 1), y)
    state = middle[:, -1]
    for t in range(5, 12):
        one, after = lru(x[:, t : t + 1], state)
        state = after[:, 0]
        torch.testing.assert_close(one[:, 0], y[:, t])
    torch.testing.assert_close(state, states[:, -1])


def test_what_follows_does_not_change_what_came_before(lru):
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    longer = torch.cat([x, 100 * torch.randn(2, 5, 6, dtype=torch.float64)], 1)
    torch.testing.assert_close(lru(longer)[0][:, :8], lru(x)[0])


def test_autocast_leaves_the_recurrence_in_full_precision():
    torch.manual_seed(0)
    lru, x = LRU(6, 10), torch.randn(2, 7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, states = lru(x)
    assert y.dtype == torch.float32 and states.dtype == torch.complex64
    torch.testing.assert_close(y, lru(x)[0])


def test_packed_rows_are_the_padded_ones_without_padding(lru):
    length = torch.tensor([3, 7, 1, 5])
    x = torch.randn(4, 9, 6, dtype=torch.float64)
    packing = Packing.of(length)
    mask = torch.arange(9) < length[:, None]
    torch.testing.assert_close(packing.pack(x), x[mask])
    torch.testing.assert_close(packing.pad(packing.pack(x)), (x * mask[..., None])[:, :7])
    torch.testing.assert_close(lru(packing.pack(x), packing=packing)[0], lru(x)[0][mask])
