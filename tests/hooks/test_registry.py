"""The optimizer that really steps is found inside wrappers, whatever the attribute is called."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from policy_noise.hooks._registry import stepping_optimizer


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)


class Wrapper:
    """A wrapper that is not a torch optimizer itself."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def step(self) -> None: ...


class Holding(torch.optim.SGD):
    """A torch optimizer that holds others."""

    def __init__(self, **held: Any) -> None:
        super().__init__(nn.Linear(2, 2).parameters(), lr=0.1)
        vars(self).update(held)


def test_a_torch_optimizer_is_its_own():
    inner = sgd()
    assert stepping_optimizer(inner) is inner


@pytest.mark.parametrize("name", ["opt", "optimizer", "_optimizer", "whatever_it_is_called"])
def test_a_wrapper_is_searched_whatever_its_attribute_is_called(name):
    inner = sgd()
    assert stepping_optimizer(Wrapper(**{name: inner}, lr=0.1, hypers=[{"lr": 0.1}])) is inner


@pytest.mark.parametrize("name", ["original_optimizer", "optim", "base_optimizer", "_base_optimizer", "base"])
def test_a_torch_optimizer_that_wraps_is_looked_through_where_it_is_known_to(name):
    inner = sgd()
    assert stepping_optimizer(Holding(**{name: inner})) is inner


def test_an_ordinary_optimizer_that_holds_another_is_not_looked_through():
    outer = Holding(reference=sgd())
    assert stepping_optimizer(outer) is outer
    assert stepping_optimizer(Wrapper(opt=outer)) is outer


def test_wrappers_in_wrappers_and_in_lists_are_searched():
    inner = sgd()
    assert stepping_optimizer(Wrapper(a=Wrapper(b=[Holding(optim=inner)]))) is inner


def test_a_scheduler_beside_its_optimizer_and_a_circle_are_no_second_optimizer():
    inner = sgd()
    outer = Wrapper(opt=inner, scheduler=torch.optim.lr_scheduler.StepLR(inner, 1))
    outer.me = outer
    assert stepping_optimizer(outer) is inner


def test_a_wrapper_with_several_is_refused_with_their_names():
    with pytest.raises(TypeError, match="several, in generator, critics\\[0\\]"):
        stepping_optimizer(Wrapper(generator=sgd(), critics=[sgd()]))


@pytest.mark.parametrize("nothing", [Wrapper(lr=0.1), SimpleNamespace(), "sgd", nn.Linear(2, 2)])
def test_a_wrapper_without_one_is_told_what_to_do(nothing):
    with pytest.raises(TypeError, match=r"attach\(model, None, criterion\).*hook\.step\(\)"):
        stepping_optimizer(nothing)


def test_a_wrapper_that_shows_its_optimizer_as_a_property_is_looked_through():
    inner = sgd()

    class Proxy:
        __slots__ = ()

        @property
        def optimizer(self) -> torch.optim.Optimizer:
            return inner

    assert stepping_optimizer(Proxy()) is inner


def test_accelerates_wrapper():
    accelerate = pytest.importorskip("accelerate")
    inner = sgd()
    assert stepping_optimizer(accelerate.Accelerator(cpu=True).prepare_optimizer(inner)) is inner


def test_pytorch_optimizers_wrapper():
    library = pytest.importorskip("pytorch_optimizer")
    inner = sgd()
    assert stepping_optimizer(library.Lookahead(inner)) is inner


def test_schedule_frees_wrapper():
    library = pytest.importorskip("schedulefree")
    inner = sgd()
    assert stepping_optimizer(library.ScheduleFreeWrapper(inner)) is inner


def test_timms_lookahead():
    from timm.optim.lookahead import Lookahead

    inner = sgd()
    assert stepping_optimizer(Lookahead(inner)) is inner


def test_torchs_post_local_sgd():
    library = pytest.importorskip("torch.distributed.optim")
    inner = sgd()
    assert stepping_optimizer(library.PostLocalSGDOptimizer(inner, averager=None)) is inner
