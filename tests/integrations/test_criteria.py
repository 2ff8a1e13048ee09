"""Every loss of torch, timm, MONAI, pytorch-metric-learning and segmentation_models_pytorch."""

import copy
import warnings

import criteria
import pytest
import torch

from policy_noise.losses import CriterionError, LossSplitter, is_hookable

CASES = []
for library, module in criteria.LIBRARIES.items():
    try:
        CASES += [
            pytest.param(library, name, loss, id=f"{library}-{name}") for name, loss in criteria.losses_of(library)
        ]
    except ImportError:
        CASES.append(pytest.param(library, "", None, id=library, marks=pytest.mark.skip(f"{module} is not installed")))
SLOW = {"HausdorffDTLoss", "LogHausdorffDTLoss", "BoundaryLoss", "VICRegLoss"}
BROKEN = {"SoftCrossEntropyLoss"}
"""Fails with its defaults on any input."""


def plain(loss, args):
    return (loss.forward if is_hookable(loss) else loss)(*args)


def state_of(loss):
    return {name: value.clone() for name, value in loss.state_dict().items()}


@pytest.mark.parametrize(("library", "name", "loss"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_agrees_or_names_the_remedy_and_leaves_no_trace(library, name, loss):
    args = criteria.call_for(library, name, copy.deepcopy(loss))
    if name in BROKEN:
        assert args is None
        return
    assert args is not None
    hooked, alone = copy.deepcopy(loss), copy.deepcopy(loss)
    splitter = LossSplitter(hooked)
    refusals = []
    for step in range(3 if name in SLOW else 12):
        torch.default_generator.manual_seed(step)
        expected = plain(alone, args)
        generators = criteria.generators()
        torch.default_generator.manual_seed(step)
        splitter.before(args, {})
        value = plain(hooked, args)
        try:
            losses = splitter(args, {}, value)
        except CriterionError as error:
            refusals.append(str(error))
        else:
            assert len(losses.values) == len(torch.utils._pytree.tree_leaves(args)[0])
            if name not in POOLING or not library.startswith("segmentation"):
                kept = losses.values if losses.valid is None else losses.values[losses.valid]
                sums = torch.stack([losses.values.mean(), losses.values.sum(), kept.mean()])
                assert (sums - expected.detach()).abs().min() < 1e-3 * expected.detach().abs() + 1e-5
        assert torch.equal(value, expected)
        assert criteria.generators() == generators
    assert all("hook.observe" in reason and "leave_one_out" in reason for reason in refusals)
    before, after = state_of(alone), state_of(hooked)
    assert all(torch.equal(before[key], after[key]) for key in before)


POOLING = {"DiceLoss", "JaccardLoss", "TverskyLoss", "LovaszLoss", "MCCLoss"}
COUPLED = {
    "monai": ("BarlowTwinsLoss", "ContrastiveLoss"),
    "pytorch-metric-learning": ("VICRegLoss", "ProxyAnchorLoss", "CircleLoss", "LiftedStructureLoss"),
}


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in COUPLED for name in COUPLED[library]])
@pytest.mark.filterwarnings("ignore")
def test_coupled_losses_are_refused_at_once_and_can_be_left_one_out(library, name):
    pytest.importorskip(criteria.LIBRARIES[library])
    loss = dict(criteria.losses_of(library))[name]
    args = criteria.call_for(library, name, copy.deepcopy(loss))
    with pytest.raises(CriterionError, match=r"hook\.observe.*leave_one_out"):
        LossSplitter(loss)(args, {}, plain(loss, args))
    losses = LossSplitter(loss, "leave_one_out")(args, {}, None)
    assert losses.values.isfinite().all()
    assert losses.values.std() > 0


@pytest.mark.parametrize("name", ["SupConLoss", "TripletMarginLoss", "NTXentLoss", "ContrastiveLoss"])
def test_the_terms_of_pytorch_metric_learning_go_to_the_samples_that_made_them(name):
    pytest.importorskip("pytorch_metric_learning")
    loss = dict(criteria.losses_of("pytorch-metric-learning"))[name]
    args = criteria.call_for("pytorch-metric-learning", name, loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (how, losses), value = criteria.outcome(loss, args)
    assert how == "the library's unreduced terms"
    assert losses.values.std() > 0
    torch.testing.assert_close(losses.values.mean(), value)


@pytest.mark.parametrize("library", ["torch", "timm"])
@pytest.mark.filterwarnings("ignore")
def test_no_precision_and_no_sum_of_calls_gives_wrong_losses(library):
    rows = criteria.table(library)
    assert {cell for _, _, *cells in rows for cell in cells} <= {"exact", "refused", "not hookable"}
    assert ("CrossEntropyLoss" if library == "torch" else "SoftTargetCrossEntropy") in {name for name, *_ in rows}
