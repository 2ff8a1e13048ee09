"""One loss per sample, compared with loops."""

import functools
import time

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import nn

from policy_noise.losses import CriterionError, LossSplitter, is_hookable, per_sample_loss

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
SOFT = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
MULTI = (SOFT > 0.25).float()
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 4.0])


def one_at_a_time(criterion, output, target):
    return torch.stack([criterion(output[i : i + 1], target[i : i + 1]).reshape(()) for i in range(len(output))])


@pytest.mark.parametrize(
    ("criterion", "output", "target"),
    [
        (nn.CrossEntropyLoss(), LOGITS, LABELS),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, LABELS),
        (nn.CrossEntropyLoss(), LOGITS, SOFT),
        (nn.CrossEntropyLoss(weight=WEIGHT), LOGITS, SOFT),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, SOFT),
        (nn.NLLLoss(), LOGITS.log_softmax(1), LABELS),
        (nn.BCEWithLogitsLoss(), LOGITS, MULTI),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), LOGITS, MULTI),
        (nn.BCEWithLogitsLoss(), LOGITS[:, 0], MULTI[:, 0]),
        (nn.MSELoss(), LOGITS, SOFT),
        (nn.SmoothL1Loss(), LOGITS, SOFT),
        (nn.KLDivLoss(reduction="batchmean"), LOGITS.log_softmax(1), SOFT),
        (nn.MultiLabelSoftMarginLoss(), LOGITS, MULTI),
        (timm.loss.LabelSmoothingCrossEntropy(0.1), LOGITS, LABELS),
        (timm.loss.SoftTargetCrossEntropy(), LOGITS, SOFT),
        (timm.loss.BinaryCrossEntropy(), LOGITS, LABELS),
        (timm.loss.BinaryCrossEntropy(sum_classes=True), LOGITS, LABELS),
        (timm.loss.BinaryCrossEntropy(target_threshold=0.2), LOGITS, SOFT),
    ],
    ids=lambda value: str(value).lower() if isinstance(value, nn.Module) else "",
)
def test_each_sample_has_the_loss_that_it_has_alone(criterion, output, target):
    losses = per_sample_loss(criterion, output, target)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses, one_at_a_time(criterion, output, target))
    torch.testing.assert_close(losses.mean(), criterion(output, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_class_weights(kind, smoothing):
    """Each sample's loss times its class's weight, and their mean is the criterion's own value."""
    output = LOGITS.log_softmax(1)
    arguments = {"label_smoothing": smoothing} if kind is nn.CrossEntropyLoss else {}
    criterion = kind(weight=WEIGHT, **arguments)
    losses = per_sample_loss(criterion, output, LABELS)
    alone = one_at_a_time(kind(weight=WEIGHT, reduction="sum", **arguments), output, LABELS)
    torch.testing.assert_close(losses, alone * len(LABELS) / WEIGHT[LABELS].sum())
    torch.testing.assert_close(losses.mean(), criterion(output, LABELS))


def test_ignored_labels_cost_nothing():
    labels = LABELS.clone()
    labels[2] = -100
    for weight in (None, WEIGHT):
        criterion = nn.CrossEntropyLoss(weight=weight)
        losses = per_sample_loss(criterion, LOGITS, labels)
        assert losses[2] == 0
        torch.testing.assert_close(losses[labels >= 0].mean(), criterion(LOGITS, labels))


def test_ignored_labels_change_nothing_for_the_others():
    labels = LABELS.clone()
    labels[2:] = -100
    losses = per_sample_loss(nn.CrossEntropyLoss(), LOGITS, labels)
    torch.testing.assert_close(losses[:2], per_sample_loss(nn.CrossEntropyLoss(), LOGITS, LABELS)[:2])


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_segmentation_averages_the_kept_pixels_of_each_image(weight):
    output = torch.randn(3, 4, 5, 6)
    target = torch.randint(4, (3, 5, 6))
    target[1, :3] = 255
    criterion = nn.CrossEntropyLoss(weight=weight, ignore_index=255)
    torch.testing.assert_close(per_sample_loss(criterion, output, target), one_at_a_time(criterion, output, target))


def test_an_image_without_a_kept_pixel_costs_nothing():
    target = torch.full((2, 5, 6), 255)
    target[0] = 1
    losses = per_sample_loss(nn.CrossEntropyLoss(ignore_index=255), torch.randn(2, 4, 5, 6), target)
    assert losses[0] > 0
    assert losses[1] == 0


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_other_reductions(reduction):
    """With ``none`` the loop reduces the losses itself. Each sample's sum is used; a common factor does not matter."""
    losses = per_sample_loss(nn.CrossEntropyLoss(reduction=reduction), LOGITS, LABELS)
    torch.testing.assert_close(losses, F.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_keywords():
    losses = per_sample_loss(nn.CrossEntropyLoss(weight=WEIGHT), input=LOGITS, target=LABELS)
    torch.testing.assert_close(losses, per_sample_loss(nn.CrossEntropyLoss(weight=WEIGHT), LOGITS, LABELS))


def test_functions():
    losses = per_sample_loss(F.cross_entropy, LOGITS, LABELS)
    torch.testing.assert_close(losses, F.cross_entropy(LOGITS, LABELS, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fp32_whatever_the_output_and_autocast(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = per_sample_loss(nn.CrossEntropyLoss(), LOGITS.to(dtype), LABELS)
    expected = F.cross_entropy(LOGITS.to(dtype).float(), LABELS, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)


def test_no_gradient_and_the_criterion_is_left_alone():
    criterion = nn.CrossEntropyLoss()
    calls = []
    criterion.register_forward_hook(lambda *args: calls.append(args))
    losses = per_sample_loss(criterion, LOGITS.clone().requires_grad_(), LABELS)
    assert not losses.requires_grad
    assert criterion.reduction == "mean"
    assert calls == []


class Focal(nn.Module):
    """A user's criterion with another one inside."""

    def __init__(self, reduction=None):
        super().__init__()
        self.inner = nn.CrossEntropyLoss()
        if reduction is not None:
            self.reduction = reduction

    def forward(self, output, target):
        loss = self.inner(output, target)
        return (1 - (-loss).exp()) ** 2 * loss


class Squeezed(nn.CrossEntropyLoss):
    """For labels of shape (N, 1), as MedMNIST has them."""

    def forward(self, output, target, scale=1.0):
        return scale * super().forward(output, target.squeeze(1))


class Picky(nn.Module):
    """A criterion that raises an error for a reduction that it does not know."""

    reduction = "mean"

    def forward(self, output, target):
        if self.reduction != "mean":
            raise NotImplementedError(self.reduction)
        return F.cross_entropy(output, target)


class Branching(nn.Module):
    """A criterion that branches on values, which vmap cannot do."""

    def forward(self, output, target):
        loss = F.cross_entropy(output, target)
        return loss if loss.item() < 1 else loss**2


@pytest.mark.parametrize("criterion", [Focal(), Focal("mean"), Branching()], ids=lambda c: type(c).__name__)
def test_a_function_of_the_batchs_mean_is_refused(criterion):
    """Each sample has its own loss, but the loop trains on something else."""
    with pytest.raises(CriterionError, match=r"is not a mean or sum over samples.*hook\.observe.*leave_one_out"):
        per_sample_loss(criterion, LOGITS, LABELS)


def test_criteria_that_refuse_a_reduction():
    torch.testing.assert_close(per_sample_loss(Picky(), LOGITS, LABELS), one_at_a_time(Picky(), LOGITS, LABELS))


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_a_subclass_with_a_forward_of_its_own(weight):
    losses = per_sample_loss(Squeezed(weight=weight), LOGITS, LABELS[:, None], 2.0)
    expected = 2 * F.cross_entropy(LOGITS, LABELS, weight=weight, reduction="none")
    torch.testing.assert_close(losses, expected)


def test_coupled_views_share_their_loss():
    criterion = timm.loss.JsdCrossEntropy(num_splits=2)
    assert not is_hookable(criterion)
    losses = per_sample_loss(criterion, LOGITS, LABELS)
    expected = torch.stack([criterion(LOGITS[[i, i + 3]], LABELS[[i, i + 3]]) for i in range(3)])
    torch.testing.assert_close(losses, expected.repeat(2))


def test_a_criterion_without_a_loss_for_one_sample_is_refused():
    class Whole(nn.Module):
        def forward(self, output, target):
            return F.mse_loss(F.batch_norm(output, None, None, training=True), target)

    with pytest.raises(CriterionError, match=r"criterion Whole gives no loss for a single sample .*hook\.observe"):
        per_sample_loss(Whole(), LOGITS, SOFT)


def test_a_loss_of_another_shape_is_refused():
    with pytest.raises(CriterionError, match=r"returned a loss of shape \(2,\), .*argument 0, shape \(6, 4\)"):
        per_sample_loss(lambda output, target: (output - target).square().sum(1)[:2], LOGITS, SOFT)


def test_a_call_without_a_batch_is_refused():
    with pytest.raises(RuntimeError, match="criterion MSELoss was called without a tensor that holds a batch"):
        per_sample_loss(nn.MSELoss(), torch.tensor(1.0), torch.tensor(2.0))


def split(criterion, *args, **kwargs):
    """Losses from a splitter that gets what the loop's own call returned."""
    return LossSplitter(criterion)(args, kwargs, criterion(*args, **kwargs))


class Deep(nn.Module):
    """Deep supervision: outputs and targets in any tree."""

    def forward(self, outputs, targets):
        main, auxiliary = outputs["main"], outputs["auxiliary"]
        return F.cross_entropy(main, targets[0]) + 0.4 * sum(F.cross_entropy(o, targets[0]) for o in auxiliary)


def test_trees_of_outputs_and_targets():
    other = LOGITS.flip(0)
    losses = split(Deep(), {"main": LOGITS, "auxiliary": [other, 2 * other]}, (LABELS,))
    own = [F.cross_entropy(o, LABELS, reduction="none") for o in (LOGITS, other, 2 * other)]
    torch.testing.assert_close(losses.values, own[0] + 0.4 * (own[1] + own[2]))


def weighed(output, target, class_weights):
    return (class_weights[target] * F.cross_entropy(output, target, reduction="none")).mean()


@pytest.mark.parametrize("sizes", [(6, 4), (4, 6, 4)])
def test_class_weights_as_long_as_a_batch_are_no_batch(sizes):
    splitter = LossSplitter(weighed)
    for size in sizes:
        output, target = LOGITS[:size].clone().requires_grad_(), LABELS[:size]
        losses = splitter((output, target, WEIGHT), {}, weighed(output, target, WEIGHT))
        expected = WEIGHT[target] * F.cross_entropy(output, target, reduction="none")
        torch.testing.assert_close(losses.values, expected.detach())


def test_what_requires_a_gradient_gives_the_batch():
    def first_weights(class_weights, output, target):
        return weighed(output, target, class_weights)

    losses = split(first_weights, WEIGHT, LOGITS.clone().requires_grad_(), LABELS)
    assert losses.values.shape == (6,)


PARTLY = torch.tensor([0, -100, 1, 1, -100, 0])


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=WEIGHT),
        F.cross_entropy,
        lambda output, target: F.cross_entropy(output, target, reduction="none").sum() / (target >= 0).sum(),
    ],
)
def test_ignored_samples_do_not_count(criterion):
    losses = split(criterion, LOGITS, PARTLY)
    assert losses.valid.tolist() == (PARTLY >= 0).tolist()
    assert (losses.values[~losses.valid] == 0).all()
    assert (losses.values[losses.valid] > 0).all()


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_samples_whose_mask_is_empty_do_not_count(kind):
    def masked(output, target, mask):
        return (F.mse_loss(output, target, reduction="none") * mask).sum() / mask.sum()

    mask = torch.ones(6, 4, dtype=kind)
    mask[3] = 0
    losses = split(masked, LOGITS, SOFT, mask)
    assert losses.valid.tolist() == [True, True, True, False, True, True]


def test_all_negative_labels_are_labels():
    target = MULTI.clone()
    target[0] = 0
    assert split(nn.BCEWithLogitsLoss(), LOGITS, target).valid is None


def contrast(output, target):
    similarity = (F.normalize(output) @ F.normalize(output).T).fill_diagonal_(-1e4)
    return F.cross_entropy(similarity, torch.arange(len(output)).roll(1))


def hard(output, target):
    return F.cross_entropy(output, target, reduction="none").topk(2).values.mean()


@pytest.mark.parametrize("criterion", [contrast, hard])
def test_coupled_losses_are_refused_at_once(criterion):
    with pytest.raises(CriterionError, match=r"hook\.observe.*leave_one_out"):
        split(criterion, LOGITS, LABELS)


def test_a_refusal_is_not_learned_from_by_chance_of_a_single_sample():
    splitter = LossSplitter(hard_or_all)
    splitter((LOGITS[:1], LABELS[:1]), {}, hard_or_all(LOGITS[:1], LABELS[:1]))
    with pytest.raises(CriterionError):
        splitter((LOGITS, LABELS), {}, hard_or_all(LOGITS, LABELS))


def hard_or_all(output, target):
    return F.cross_entropy(output, target, reduction="none").topk(min(2, len(output))).values.mean()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_leave_one_out_gives_uncoupled_samples_their_own_loss(reduction):
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    losses = per_sample_loss(criterion, LOGITS, LABELS, loss_method="leave_one_out")
    torch.testing.assert_close(losses, F.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_leave_one_out_in_closed_form():
    """Variance about the mean: leaving one sample out removes n / (n - 1) of its squared distance."""

    def spread(output):
        return ((output - output.mean(0)) ** 2).sum()

    spread.reduction = "sum"
    losses = per_sample_loss(spread, LOGITS, loss_method="leave_one_out")
    torch.testing.assert_close(losses, 6 / 5 * (LOGITS - LOGITS.mean(0)).square().sum(1))


def test_a_method_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"loss_method must be one of .*'leave_one_out'.*got 'all'"):
        LossSplitter(hard, "all")


def test_half_precision_losses_are_compared_in_single_precision():
    output = LOGITS.bfloat16()
    losses = LossSplitter(nn.MSELoss())((output, SOFT.bfloat16()), {}, nn.MSELoss()(output, SOFT.bfloat16()))
    assert losses.values.dtype == torch.float32
    torch.testing.assert_close(losses.values, (output.float() - SOFT.bfloat16().float()).square().mean(1))


class OwnWeights(nn.Module):
    """A weighted cross-entropy that divides by the sum of the batch's weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", WEIGHT)

    def forward(self, output, target):
        weight = self.weight[target]
        return (weight * F.cross_entropy(output, target, reduction="none")).sum() / weight.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_initialisation_half_precision_is_as_strict_as_single(dtype):
    """All losses lie within 1 %, as those of a new network do."""
    output = (LOGITS * 0.01).to(dtype)
    value = OwnWeights()(output.float(), LABELS).to(dtype)
    with pytest.raises(CriterionError, match="is not a mean or sum over samples"):
        LossSplitter(OwnWeights())((output, LABELS), {}, value)


class OverPositives(nn.Module):
    """A loss over a number of positives, which at first is the same in all images."""

    def forward(self, output, mask):
        return ((output - 1).square() * mask).sum() / mask.sum()


def test_what_agrees_at_first_is_looked_at_again_at_calls_two_four_and_eight():
    splitter, refused = LossSplitter(OverPositives()), []
    uneven = torch.ones(6, 4)
    uneven[:3, 1:] = 0
    for call in range(1, 9):
        mask = uneven if call > 4 else torch.ones(6, 4)
        try:
            args = (LOGITS.clone(), mask)
            splitter.before(args, {})
            splitter(args, {}, OverPositives()(*args))
        except CriterionError:
            refused.append(call)
    assert refused == [8]


def test_each_image_may_have_its_own_loss_where_the_batchs_is_another():
    losses = per_sample_loss(OwnWeights(), LOGITS, LABELS, loss_method="own")
    torch.testing.assert_close(losses, F.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_an_image_without_an_own_loss_does_not_count():
    mask = torch.ones(6, 4)
    mask[2] = 0
    losses = LossSplitter(OverPositives(), "own")((LOGITS, mask), {}, None)
    assert losses.valid.tolist() == [True, True, False, True, True, True]
    assert losses.values.isfinite().all()


class Ignoring(nn.Module):
    ignore_index = 9

    def forward(self, output, target):
        kept = target != 9
        losses = F.cross_entropy(output.flatten(0, 1), target.clamp(max=3).flatten(), reduction="none")
        return (losses * kept.flatten()).sum() / kept.sum()


def noisy(output, target):
    return F.cross_entropy(output + torch.randn_like(output), target)


def centred(output, target):
    return F.mse_loss(output - output.mean(0), target)


def weighted_by_a_list(output, target, weights):
    return (torch.tensor(weights) * F.cross_entropy(output, target, reduction="none")).mean()


MANY = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
PIXELS = torch.tensor([[0, 1, 9, 9, 9], [1, 2, 3, 0, 1], [3, 9, 0, 1, 2]])


@pytest.mark.parametrize(
    ("criterion", "args", "cause"),
    [
        (OwnWeights(), (LOGITS, LABELS), "class weights"),
        (Ignoring(), (MANY, PIXELS), "labels that are not ignored"),
        (OverPositives(), (LOGITS, (SOFT > 0.2).float()), "a count over the batch"),
        (noisy, (LOGITS, LABELS), "draws random numbers"),
        (centred, (LOGITS, SOFT), "couples the samples"),
        (weighted_by_a_list, (LOGITS, LABELS, [1.0, 9.0, 1.0, 1.0, 2.0, 1.0]), r"argument 2 \(list\) has one entry"),
        (lambda x, y, net: F.mse_loss(net(x), y), (LOGITS, SOFT, nn.BatchNorm1d(4)), r"given \(argument 2\)"),
    ],
)
def test_the_refusal_names_the_likely_cause_and_the_batch(criterion, args, cause):
    value = (criterion.forward if isinstance(criterion, nn.Module) else criterion)(*args)
    with pytest.raises(CriterionError, match=rf"{cause}.*\(?argument 0, shape .* was taken for the batch"):
        LossSplitter(criterion)(args, {}, value)


def test_the_refusal_names_hooks_of_the_criterion():
    criterion = nn.MSELoss()
    criterion.register_forward_hook(lambda module, args, loss: loss * 2)
    with pytest.raises(CriterionError, match="its own forward hooks change the loss"):
        LossSplitter(criterion)((LOGITS, SOFT), {}, criterion(LOGITS, SOFT))


@pytest.mark.parametrize(
    "wrap",
    [lambda loss: (loss, {"ce": loss.detach()}), lambda loss: {"total_loss": loss, "ce": 1.0}, lambda loss: [loss]],
)
def test_losses_that_come_with_logs(wrap):
    def criterion(output, target):
        return wrap(F.cross_entropy(output, target))

    losses = split(criterion, LOGITS.clone().requires_grad_(), LABELS)
    torch.testing.assert_close(losses.values, F.cross_entropy(LOGITS, LABELS, reduction="none"))


@pytest.mark.parametrize("pack", [tuple, lambda pair: dict(zip("ab", pair, strict=True))])
def test_several_losses_without_a_sum_are_refused(pack):
    def criterion(output, target):
        loss = F.cross_entropy(output, target)
        return pack([loss, 2 * loss])

    with pytest.raises(CriterionError, match=r"returned .*, not a loss \(nor a tuple or mapping with one loss in it\)"):
        split(criterion, LOGITS.clone().requires_grad_(), LABELS)


@pytest.mark.parametrize("function", [F.cross_entropy, functools.partial(F.cross_entropy, ignore_index=9)])
def test_torchs_functions_leave_ignored_labels_out_as_their_modules_do(function):
    ignored = -100 if function is F.cross_entropy else 9
    target = torch.where(PIXELS == 9, ignored, PIXELS)
    module = nn.CrossEntropyLoss(ignore_index=ignored)
    output = MANY.transpose(1, 2)
    torch.testing.assert_close(per_sample_loss(function, output, target), one_at_a_time(module, output, target))
    weighed = per_sample_loss(function, output, target, weight=WEIGHT)
    torch.testing.assert_close(
        weighed, one_at_a_time(nn.CrossEntropyLoss(WEIGHT, ignore_index=ignored), output, target)
    )


def test_a_long_loop_over_rows_is_said_before_it_has_run(monkeypatch):
    monkeypatch.setattr("policy_noise.losses._ways.SLOW", 0.0)

    def branching(output, target):
        loss = (output - target).square().sum()
        return loss if loss.item() < 0 else loss * 2

    branching.reduction = "sum"
    with pytest.warns(UserWarning, match=r"criterion branching is evaluated again.* s a step .*hook\.observe"):
        per_sample_loss(branching, LOGITS.repeat(4, 1), SOFT.repeat(4, 1))


def test_a_second_evaluation_that_takes_longer_than_the_step_is_said_once(recwarn, monkeypatch):
    monkeypatch.setattr("policy_noise.losses._splitter.NOTICEABLE", 0.05)

    class Slow(nn.Module):
        def forward(self, output, target):
            time.sleep(0.07)
            return F.mse_loss(output, target)

    splitter = LossSplitter(Slow())
    for _ in range(6):
        splitter((LOGITS, SOFT), {}, F.mse_loss(LOGITS, SOFT))
        splitter.stepped()
    messages = [str(w.message) for w in recwarn if "criterion Slow is evaluated again" in str(w.message)]
    assert len(messages) == 1
    assert "of a step's" in messages[0]
