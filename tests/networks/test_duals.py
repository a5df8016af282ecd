"""The guards of tangents: each way of losing one raises."""

import pytest
import torch
from torch.autograd import forward_ad

from tvmatch.networks.duals import PairModule, TangentError, check_pair, close_dual_levels, push_forward


def test_value_and_derivative() -> None:
    x, tx = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5])
    y, ty = push_forward(lambda x, y: x.square() * y, (x, x), (tx, None), "square")
    torch.testing.assert_close(y, x**3)
    torch.testing.assert_close(ty, 2 * x * x * tx)


class Cube(PairModule):
    def body(self, x: torch.Tensor) -> torch.Tensor:
        return x**3


def test_pair_module_takes_plain_tensors_or_pairs() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    torch.testing.assert_close(Cube()(x), x**3)
    _, ty = Cube()(x, tangents=(torch.ones(1),))
    torch.testing.assert_close(ty, 3 * x**2)
    torch.testing.assert_close(torch.autograd.grad(ty.sum(), x)[0], 6 * x.detach())


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.detach() * 2,
        lambda x: torch.zeros_like(x),
        lambda x: torch.tensor(x.tolist()),
    ],
)
def test_a_dropped_tangent_raises(function) -> None:
    with pytest.raises(TangentError, match="no tangent"):
        push_forward(function, (torch.ones(2),), (torch.ones(2),), "lossy")


def test_a_function_without_forward_mode_raises() -> None:
    with pytest.raises((TangentError, RuntimeError), match=r"jvp|tangent"):
        push_forward(NoForwardMode.apply, (torch.ones(2),), (torch.ones(2),), "custom")


def test_a_detached_tangent_raises() -> None:
    weight = torch.ones(2, requires_grad=True)

    def cut(x: torch.Tensor) -> torch.Tensor:
        primal, tangent = forward_ad.unpack_dual(x * weight)
        return forward_ad.make_dual(primal, tangent.detach())

    with pytest.raises(TangentError, match="carries gradients but its tangent does not"):
        push_forward(cut, (torch.ones(2),), (torch.ones(2),), "cut")
    with torch.no_grad():  # nothing is being learned: nothing to lose
        push_forward(cut, (torch.ones(2),), (torch.ones(2),), "cut")


def test_shapes_must_agree() -> None:
    with pytest.raises(TangentError, match=r"primal \(2,\).*tangent \(3,\)"):
        check_pair(torch.ones(2), torch.ones(3), "here")
    with pytest.raises(ValueError, match="1 primals but 2 tangents"):
        push_forward(torch.sin, (torch.ones(2),), (None, None), "here")


def test_all_tangents_zero_is_refused() -> None:
    with pytest.raises(TangentError, match="every tangent is None"):
        push_forward(torch.sin, (torch.ones(2),), (None,), "here")


def test_a_level_left_open_raises_and_can_be_closed() -> None:
    forward_ad.enter_dual_level()  # what a failed trace leaves behind
    try:
        with pytest.raises(TangentError, match="already open"):
            push_forward(torch.sin, (torch.ones(2),), (torch.ones(2),), "here")
    finally:
        assert close_dual_levels() == 1
    assert close_dual_levels() == 0
    push_forward(torch.sin, (torch.ones(2),), (torch.ones(2),), "here")


def test_an_error_inside_closes_its_level() -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        push_forward(fails, (torch.ones(2),), (torch.ones(2),), "here")
    assert close_dual_levels() == 0


def test_inference_mode_is_named() -> None:
    with torch.inference_mode(), pytest.raises(TangentError, match="inference_mode switches forward mode off"):
        push_forward(lambda x: x * 2, (torch.ones(2),), (torch.ones(2),), "double")


def test_an_operation_without_a_rule_is_named_with_what_to_take() -> None:
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(TangentError, match=r"attention: .*forward AD.* take tvmatch.kernels.dual_attention"):
        push_forward(lambda q: attend(q, q, q), (q,), (torch.ones_like(q),), "attention")


def test_what_a_function_has_not_implemented_keeps_its_words() -> None:
    def later(x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("not yet")

    with pytest.raises(NotImplementedError, match="not yet"):
        push_forward(later, (torch.ones(2),), (torch.ones(2),), "later")
