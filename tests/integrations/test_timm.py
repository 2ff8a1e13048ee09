"""timm's tasks with its own losses, mixup, optimizers, EMA, scalers and checkpoints: the body of its train.py."""

import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import (
    AsymmetricLossMultiLabel,
    AsymmetricLossSingleLabel,
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import (
    ClassificationTask,
    DistillationTeacher,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    TrainingTask,
    resume_task_checkpoint,
)
from timm.utils import CheckpointSaver, NativeScaler
from tiny import SETTINGS, Watch, assert_clean, assert_masked, parameters_equal, policy_vector, tiny_data
from torch import nn
from torch.utils.data import DataLoader

import policy_noise
from policy_noise.losses import per_sample_loss


def network():
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=4)


def attach(task, optimizer, **settings):
    torch.manual_seed(1)
    settings = {"generator": torch.Generator().manual_seed(0), "preset": "learned", **SETTINGS, **settings}
    return policy_noise.attach(task, optimizer, **settings)


def train_one_epoch(
    task, optimizer, scheduler=None, mixup=None, scaler=None, dtype=None, channels_last=False, prepare=None, epoch=0
):
    """What train.py does, in its order."""
    task.train()
    for index, (images, targets) in enumerate(DataLoader(tiny_data(), batch_size=8)):
        if mixup is not None:
            images, targets = mixup(images, targets)
        if prepare is not None:
            images, targets = prepare(images, targets)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            result = task(images, targets)
        second_order = getattr(optimizer, "is_second_order", False)
        optimizer.zero_grad()
        parameters = task.get_clip_parameters()
        if scaler is not None:
            scaler(result["loss"], optimizer, clip_grad=1.0, parameters=parameters, create_graph=second_order)
        else:
            result["loss"].backward(create_graph=second_order)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        task.update_ema(step=epoch * 4 + index)
        if scheduler is not None:
            scheduler.step_update(num_updates=epoch * 4 + index + 1)
    if scheduler is not None:
        scheduler.step(epoch + 1)
    if hasattr(optimizer, "sync_lookahead"):
        optimizer.sync_lookahead()


@torch.no_grad()
def validate(model):
    model.eval()
    for images, _ in DataLoader(tiny_data(), batch_size=8):
        model(images)


@pytest.mark.parametrize("opt", ["adamw", "lookahead_adamw", "sgd", "adahessian", "lamb"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_learns_and_validates_clean(opt, dtype):
    task = ClassificationTask(network())
    optimizer = create_optimizer_v2(task.trainable_module, opt=opt, lr=1e-2)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=2, warmup_epochs=0, updates_per_epoch=4)
    hook = attach(task, optimizer)
    assert hook.augmentation.black.flatten().tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    ema = task.setup_ema(decay=0.5)
    watch, watch_ema = Watch(task.trainable_module.conv_stem), Watch(ema.module.conv_stem)
    for epoch in range(2):
        train_one_epoch(task, optimizer, scheduler, dtype=dtype, channels_last=True, epoch=epoch)
        validate(task.get_eval_model())
        validate(task.get_eval_model(ema=True))
    images = tiny_data().tensors[0]
    assert_masked(watch.training, images)
    assert_clean(watch.validation, images)
    assert_clean(watch_ema.validation, images)
    assert hook.metrics["samples_seen"] == 64
    assert hook.metrics["samples_dropped"] == 0
    assert hook.augmentation.policy.head.weight.abs().sum() > 0
    assert hook.policy_optimizer.param_groups[0]["lr"] < 1e-2  # follows the cosine


def test_scaler_of_timm():
    task = ClassificationTask(network())
    optimizer = create_optimizer_v2(task.trainable_module, opt="adamw", lr=1e-2)
    hook = attach(task, optimizer)
    train_one_epoch(task, optimizer, scaler=NativeScaler(device="cpu"), dtype=torch.bfloat16)
    assert hook._draws.steps == 4


@pytest.mark.parametrize(
    ("criterion", "soft"),
    [
        (SoftTargetCrossEntropy(), True),
        (BinaryCrossEntropy(), True),
        (BinaryCrossEntropy(smoothing=0.1), False),
        (LabelSmoothingCrossEntropy(0.1), False),
        (AsymmetricLossSingleLabel(), False),
        (lambda output, target: nn.functional.cross_entropy(output, target), False),
    ],
)
def test_losses_and_mixed_targets(criterion, soft):
    """The mixed image is masked, and the reward is the loss on the mixed targets."""
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=4) if soft else None
    task = ClassificationTask(network(), criterion)
    optimizer = create_optimizer_v2(task.trainable_module, opt="adamw", lr=1e-2)
    hook = attach(task, optimizer, p=1.0)
    losses = []
    task.register_forward_hook(lambda module, args, result: losses.append(result["loss"].item()))
    train_one_epoch(task, optimizer, mixup=mixup)
    assert hook.metrics["samples_seen"] == 32
    assert hook.metrics["reward"] == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_jsd_rewards_all_views_of_an_image_with_its_loss(smoothing):
    criterion = JsdCrossEntropy(num_splits=3, smoothing=smoothing)
    output, target = torch.randn(12, 4), torch.randint(4, (4,)).repeat(3)
    losses = per_sample_loss(criterion, output, target)
    assert losses.shape == (12,)
    for image in range(4):
        views = slice(image, None, 4)
        assert losses[views].tolist() == pytest.approx([criterion(output[views], target[views]).item()] * 3, rel=1e-5)
    torch.testing.assert_close(losses.mean(), criterion(output, target))


def test_jsd_with_splits_in_a_task():
    def views(images, targets):
        return torch.cat([images, images.flip(3), images.flip(2)]), targets.repeat(3)

    task = ClassificationTask(network(), JsdCrossEntropy(num_splits=3))
    optimizer = create_optimizer_v2(task.trainable_module, opt="adamw", lr=1e-2)
    hook = attach(task, optimizer)
    train_one_epoch(task, optimizer, prepare=views)
    assert hook.metrics["samples_seen"] == 96
    assert hook.augmentation.policy.head.weight.abs().sum() > 0


def test_jsd_without_a_task_says_what_to_do():
    model = network()
    with pytest.raises(TypeError, match=r"JsdCrossEntropy overrides __call__.*per_sample_loss"):
        policy_noise.attach(model, torch.optim.SGD(model.parameters(), 0.1), JsdCrossEntropy())


@pytest.mark.parametrize("criterion", [None, AsymmetricLossMultiLabel()])
def test_multi_label_task(criterion):
    task = MultiLabelClassificationTask(network(), criterion)
    optimizer = create_optimizer_v2(task.trainable_module, opt="adamw", lr=1e-2)
    hook = attach(task, optimizer, p=1.0)
    losses = []
    task.register_forward_hook(lambda module, args, result: losses.append(result["loss"].item()))
    train_one_epoch(task, optimizer, prepare=lambda x, t: (x, nn.functional.one_hot(t, 4).float()))
    assert hook.metrics["samples_seen"] == 32
    assert hook.metrics["reward"] == pytest.approx(losses[-1], rel=1e-4)


def test_distillation_task_is_rewarded_with_the_loss_on_the_targets():
    teacher = DistillationTeacher(network(), num_classes=4, in_chans=3)
    task = LogitDistillationTask(network(), teacher, verbose=False)
    optimizer = create_optimizer_v2(task.trainable_module, opt="adamw", lr=1e-2)
    hook = attach(task, optimizer, p=1.0)
    results = []
    task.register_forward_hook(lambda module, args, result: results.append(result["task_loss"].item()))
    train_one_epoch(task, optimizer)
    assert hook.metrics["reward"] == pytest.approx(results[-1], rel=1e-4)


def test_task_without_criterion_says_what_to_do():
    class Bare(TrainingTask):
        def __init__(self):
            super().__init__()
            self.trainable_module = network()

    task = Bare()
    with pytest.raises(ValueError, match="criterion of Bare is None"):
        policy_noise.attach(task, torch.optim.SGD(task.parameters(), 0.1), preset="learned")


@pytest.mark.parametrize("opt", ["adamw", "lookahead_adamw"])
def test_resume_equals_uninterrupted(tmp_path, opt):
    def start():
        task = ClassificationTask(network())
        optimizer = create_optimizer_v2(task.trainable_module, opt=opt, lr=1e-2)
        return task, optimizer, attach(task, optimizer)

    task, optimizer, hook = start()
    saver = CheckpointSaver(task.trainable_module, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    for epoch in range(2):
        train_one_epoch(task, optimizer, epoch=epoch)
        saver.save_checkpoint(epoch)
    resumed, other_optimizer, other = start()
    assert resume_task_checkpoint(resumed, str(tmp_path / "checkpoint-0.pth.tar"), other_optimizer) == 1
    train_one_epoch(resumed, other_optimizer, epoch=1)
    assert parameters_equal(task.trainable_module, resumed.trainable_module)
    assert torch.equal(policy_vector(hook), policy_vector(other))
    assert hook.metrics == other.metrics


def test_checkpoints_with_and_without_a_policy(tmp_path):
    task = ClassificationTask(network())
    optimizer = create_optimizer_v2(task.trainable_module, opt="adamw", lr=1e-2)
    saver = CheckpointSaver(task.trainable_module, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    train_one_epoch(task, optimizer)
    saver.save_checkpoint(0)
    hook = attach(task, optimizer)
    with pytest.warns(UserWarning, match="saved without a policy"):
        resume_task_checkpoint(task, str(tmp_path / "checkpoint-0.pth.tar"), optimizer)
    train_one_epoch(task, optimizer)
    saver.save_checkpoint(1)
    hook.remove()
    plain = ClassificationTask(network())
    plain_optimizer = create_optimizer_v2(plain.trainable_module, opt="adamw", lr=1e-2)
    resume_task_checkpoint(plain, str(tmp_path / "checkpoint-1.pth.tar"), plain_optimizer)
    train_one_epoch(plain, plain_optimizer)
    assert "policy_noise" not in plain_optimizer.state_dict()
