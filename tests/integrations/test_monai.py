"""The handler for MONAI's SupervisedTrainer and for ignite engines, with volumes."""

import pytest
import torch
from ignite.engine import create_supervised_trainer
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver, ValidationHandler
from monai.losses import DiceCELoss, DiceLoss, FocalLoss
from monai.networks.nets import UNet
from tiny import TinyNet, Watch, assert_clean, assert_masked, parameters_equal, policy_vector, tiny_data
from torch import nn

from policy_noise.integrations.monai import PolicyNoiseHandler
from policy_noise.losses import per_sample_loss

VOLUMES = torch.randn(12, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = (VOLUMES > 0.5).float()
CLASSES = torch.arange(12) % 4


def loader(labels=LABELS):
    rows = [{"image": MetaTensor(image), "label": label} for image, label in zip(VOLUMES, labels, strict=True)]
    return DataLoader(Dataset(rows), batch_size=4)


def noise_handler():
    torch.manual_seed(1)
    return PolicyNoiseHandler(grid_size=4, generator=torch.Generator().manual_seed(0))


def segmenter():
    torch.manual_seed(0)
    return UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=(4, 8), strides=(2,))


def trainer(network, handlers, loss_function, labels=LABELS, epochs=2):
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader(labels),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2),
        loss_function=loss_function,
        train_handlers=handlers,
    )


def test_learns_on_volumes_and_validates_clean():
    network, noise = segmenter(), noise_handler()
    watch = Watch(network.model[0])
    evaluator = SupervisedEvaluator(torch.device("cpu"), loader(), network)
    trainer(network, [noise, ValidationHandler(1, evaluator)], DiceLoss(sigmoid=True)).run()
    assert_masked(watch.training, VOLUMES)
    assert_clean(watch.validation, VOLUMES)
    assert noise.hook.augmentation.grid_size == (4, 4, 4)
    assert type(noise.hook.learner._moving_average) is torch.Tensor  # no MetaTensor goes into the policy
    assert noise.hook.metrics["samples_seen"] == 24
    assert noise.hook.augmentation.policy.head.weight.abs().sum() > 0
    network.train()
    assert network._forward_pre_hooks.keys() == set()  # taken off when the run ended


@pytest.mark.parametrize("loss", [DiceCELoss(sigmoid=True), DiceLoss(sigmoid=True, batch=True), FocalLoss()])
def test_losses_of_segmentation(loss):
    noise = noise_handler()
    trainer(segmenter(), [noise], loss, epochs=1).run()
    assert noise.hook.metrics["samples_seen"] == 12
    assert noise.hook.metrics["samples_dropped"] == 0
    output, target = torch.randn(4, 1, 8, 8, 8), (torch.rand(4, 1, 8, 8, 8) > 0.5).float()
    expected = torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(per_sample_loss(loss, MetaTensor(output), MetaTensor(target)), expected)


def test_classifier_of_volumes():
    torch.manual_seed(0)
    noise = noise_handler()
    trainer(TinyNet(in_chans=1, dims=3), [noise], nn.CrossEntropyLoss(), CLASSES, epochs=1).run()
    assert noise.hook.metrics["samples_seen"] == 12


def test_resume_equals_uninterrupted(tmp_path):
    def run(epochs, load=None):
        network, noise = segmenter(), noise_handler()
        engine = trainer(network, [noise], DiceLoss(sigmoid=True), epochs=epochs)
        parts = {"network": network, "optimizer": engine.optimizer, "trainer": engine}
        if load:
            CheckpointLoader(str(load), parts).attach(engine)
        CheckpointSaver(str(tmp_path), parts, save_interval=2, epoch_level=True).attach(engine)
        engine.run()
        return network, noise

    whole, noise_whole = run(4)
    resumed, noise = run(4, tmp_path / "checkpoint_epoch=2.pt")
    assert parameters_equal(whole, resumed)
    assert torch.equal(policy_vector(noise_whole.hook), policy_vector(noise.hook))
    assert noise_whole.hook.metrics == noise.hook.metrics


def test_second_run_goes_on_with_the_policy():
    network, noise = segmenter(), noise_handler()
    engine = trainer(network, [noise], DiceLoss(sigmoid=True), epochs=1)
    engine.run()
    learned = policy_vector(noise.hook)
    noise.settings["policy_lr"] = 0.0
    engine.state.max_epochs = 2
    engine.run()
    assert noise.hook.metrics["samples_seen"] == 24
    assert torch.equal(learned, policy_vector(noise.hook))


def test_ignite_engine_of_your_own():
    torch.manual_seed(0)
    network, criterion = TinyNet(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    engine = create_supervised_trainer(network, optimizer, criterion)
    noise = PolicyNoiseHandler(network, optimizer, criterion, grid_size=4)
    noise.attach(engine)
    engine.run(torch.utils.data.DataLoader(tiny_data(), batch_size=8), max_epochs=1)
    assert noise.hook.metrics["samples_seen"] == 32


def test_the_next_folds_network_gets_a_policy_of_its_own(recwarn):
    """Training the same network again continues with its policy."""
    noise, network = noise_handler(), segmenter()
    engine = trainer(network, [noise], DiceLoss(sigmoid=True), epochs=1)
    engine.run()
    engine.state.max_epochs = 2
    engine.run()
    assert noise.hook.metrics["samples_seen"] == 24
    trainer(segmenter(), [noise], DiceLoss(sigmoid=True), epochs=1).run()
    assert noise.hook.metrics["samples_seen"] == 12
    assert not [str(warning.message) for warning in recwarn if "policy_noise" in str(warning.message)]
