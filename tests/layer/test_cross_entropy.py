import pytest
import torch
from torch.nn import functional

from recbole_llm.layer.cross_entropy import linear_cross_entropy


def problem(dtype=torch.float64, n=23, width=5, classes=40):
    torch.manual_seed(1)
    hidden, weight, bias = 4 * torch.randn(n, width), torch.randn(classes, width), torch.randn(classes)
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
    return tensors, torch.randint(classes, (n,))


@pytest.mark.parametrize("rows", [1, 4, 23, 100, None])
def test_value_and_gradients_are_those_of_the_whole_table(rows):
    tensors, target = problem()
    loss = linear_cross_entropy(*tensors, target, rows=rows)
    expected = functional.cross_entropy(functional.linear(*tensors), target)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(3 * loss, tensors)
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected, tensors))


def test_large_scores_do_not_overflow():
    tensors, target = problem(torch.float32)
    with torch.no_grad():
        tensors[0] *= 1000
    loss = linear_cross_entropy(*tensors, target)
    torch.testing.assert_close(loss, functional.cross_entropy(functional.linear(*tensors), target))
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, tensors))


def test_without_gradient():
    tensors, target = problem()
    with torch.no_grad():
        loss = linear_cross_entropy(*tensors, target)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy(*tensors, target).detach())


def test_autocast():
    tensors, target = problem(torch.float32)
    expected = linear_cross_entropy(*tensors, target)
    gradients = torch.autograd.grad(expected, tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*tensors, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(torch.autograd.grad(loss, tensors), gradients, rtol=0.1, atol=0.05)
