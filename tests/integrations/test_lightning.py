"""The Lightning callback, in real Trainers."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from ranks import START
from tiny import SETTINGS, TinyNet, Watch, assert_clean, assert_masked, parameters_equal, policy_vector, tiny_data
from torch import nn
from torch.utils.data import DataLoader

from policy_noise.integrations.lightning import PolicyNoiseCallback


class Classifier(LightningModule):
    """Two optimizers in manual mode, one in automatic mode."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = TinyNet()
        self.other = nn.Linear(4, 4)
        self.criterion = nn.CrossEntropyLoss()
        self.automatic_optimization = not manual
        self.steps = 0

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, index):
        loss = self.criterion(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        other, optimizer = self.optimizers()
        other.zero_grad()
        self.other(torch.ones(1, 4)).sum().backward()
        other.step()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.steps += 1
        return None

    def validation_step(self, batch, index):
        self.criterion(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        return optimizer if self.automatic_optimization else [torch.optim.SGD(self.other.parameters(), 0.1), optimizer]


def callback(model="net", criterion="criterion", **settings):
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(0)
    return PolicyNoiseCallback(model, criterion, generator=generator, **{**SETTINGS, **settings})


def fit(module, noise, epochs=2, ckpt_path=None, **options):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[noise] if noise else [],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    loader = DataLoader(tiny_data(), batch_size=8)
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_learns_and_validates_clean(manual, precision):
    module, noise = Classifier(manual), callback(optimizer=int(manual))
    watch = Watch(module.net.block1)
    fit(module, noise, precision=precision)
    images = tiny_data().tensors[0]
    assert_masked(watch.training, images)
    assert_clean(watch.validation, images)
    assert noise.hook.metrics["samples_seen"] == 64
    assert policy_vector(noise.hook).isfinite().all()
    assert noise.hook.augmentation.policy.head.weight.abs().sum() > 0  # it starts at zero
    module.train()
    assert torch.equal(module.net(images), module.net(images))  # the hook was removed when fitting ended


def test_accumulated_batches_are_one_step():
    module, noise = Classifier(), callback()
    fit(module, noise, epochs=1, accumulate_grad_batches=2)
    assert noise.hook._draws.steps == 2
    assert noise.hook.metrics["samples_seen"] == 32


@pytest.mark.parametrize("manual", [False, True])
def test_resume_equals_uninterrupted(tmp_path, manual):
    whole, noise_whole = Classifier(manual), callback(optimizer=int(manual))
    fit(whole, noise_whole, epochs=4)
    half = Classifier(manual)
    trainer = fit(half, callback(optimizer=int(manual)), epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, noise = Classifier(manual), callback(optimizer=int(manual))
    fit(resumed, noise, epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert parameters_equal(whole, resumed)
    assert torch.equal(policy_vector(noise_whole.hook), policy_vector(noise.hook))
    assert noise_whole.hook.metrics == noise.hook.metrics


def test_second_fit_of_a_module_goes_on_with_the_policy_and_a_new_module_gets_one_of_its_own():
    module, noise = Classifier(), callback()
    fit(module, noise, epochs=1)
    learned = policy_vector(noise.hook)
    noise.settings["frozen"] = True
    fit(module, noise, epochs=1)
    assert torch.equal(learned, policy_vector(noise.hook))
    fit(Classifier(), noise, epochs=1)
    assert not torch.equal(learned, policy_vector(noise.hook))


def test_foreign_checkpoint_warns_and_ours_loads_into_a_plain_trainer(tmp_path):
    trainer = fit(Classifier(), None, epochs=1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="saved without a policy") as said:
        fit(Classifier(), callback(), epochs=2, ckpt_path=tmp_path / "plain.ckpt")
    assert [w.filename for w in said if "saved without a policy" in str(w.message)] == [fit.__code__.co_filename]
    trainer = fit(Classifier(), callback(), epochs=1)
    trainer.save_checkpoint(tmp_path / "ours.ckpt")
    plain = Classifier()
    fit(plain, None, epochs=2, ckpt_path=tmp_path / "ours.ckpt")
    assert "policy_noise" not in plain.optimizers().optimizer.state_dict()


class Alone(Classifier):
    """Without the part that no loss reaches, which DDP refuses."""

    def __init__(self):
        super().__init__()
        del self.other


class Recording(PolicyNoiseCallback):
    folder = ""

    def on_fit_end(self, trainer, pl_module):
        hook = self.hook
        result = {"policy": policy_vector(hook), "reward": hook.metrics["reward"], "steps": hook._draws.steps}
        torch.save(result, f"{self.folder}/{trainer.global_rank}.pt")
        super().on_fit_end(trainer, pl_module)


def test_ddp_strategy(tmp_path):
    noise = Recording("net", "criterion", **SETTINGS)
    noise.folder = str(tmp_path)
    fit(Alone(), noise, devices=2, strategy=DDPStrategy(start_method=START))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first["policy"], second["policy"])
    assert first["reward"] == second["reward"]
    assert first["steps"] == second["steps"] == 4


def test_whole_module_under_a_wrapping_strategy_says_what_to_do():
    class Wrapped:
        strategy = type("DDPStrategy", (), {"model": nn.Identity()})()
        optimizers = (None,)

    with pytest.raises(ValueError, match="name the submodule that takes the images"):
        callback("").on_fit_start(Wrapped, Classifier())


def test_module_that_calls_itself():
    class Itself(Classifier):
        def training_step(self, batch, index):
            return self.criterion(self(batch[0]), batch[1])

    module, noise = Itself(), callback("")
    watch = Watch(module.net.block1)
    fit(module, noise, epochs=1)
    assert_masked(watch.training, tiny_data().tensors[0])
    assert noise.hook.metrics["samples_seen"] == 32


def test_loss_functions_are_observed_by_hand():
    noise = callback(criterion=None, preset="learned")

    class Functional(Classifier):
        def training_step(self, batch, index):
            losses = nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
            return noise.hook.observe(losses).mean()

    fit(Functional(), noise, epochs=1)
    assert noise.hook.metrics["samples_seen"] == 32


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": "network"}, "model must name a submodule of Classifier .*'net'"),
        ({"criterion": "loss"}, "criterion must name a submodule"),
        ({"optimizer": 1}, "index into the 1 optimizers of configure_optimizers, got 1"),
    ],
)
def test_wrong_names(wrong, words):
    with pytest.raises(ValueError, match=words):
        fit(Classifier(), callback(**wrong), epochs=1)


def test_the_epoch_in_which_weight_averaging_measures_is_not_masked():
    """It runs in training mode with gradients to recompute BatchNorm's statistics, without steps."""
    module, noise = Classifier(), callback(p=1.0)
    watch = Watch(module.net.block1)
    images = tiny_data().tensors[0]
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=2, callbacks=[noise, averaging], enable_checkpointing=False, num_sanity_val_steps=0, **options
    )
    trainer.fit(module, DataLoader(tiny_data(), batch_size=8))
    assert len(watch.training) == 3 * 4
    clean = [any(torch.equal(row, image) for image in images) for batch in watch.training for row in batch]
    assert not any(clean[: 2 * 32])
    assert all(clean[2 * 32 :])
    assert noise.hook.metrics["samples_seen"] == 2 * 32


class Pair(LightningModule):
    """Two networks with an optimizer each, as a GAN or two tasks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = TinyNet(), TinyNet()
        self.criteria = nn.ModuleList([nn.CrossEntropyLoss(), nn.CrossEntropyLoss()])
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for net, criterion, optimizer in zip((self.first, self.second), self.criteria, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(criterion(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.AdamW(net.parameters(), lr=1e-2) for net in (self.first, self.second)]


def test_two_callbacks_in_one_trainer_resume_their_own_policies(tmp_path):
    def run(epochs, ckpt_path=None):
        noises = [
            PolicyNoiseCallback(name, f"criteria.{index}", index, **SETTINGS)
            for index, name in enumerate(("first", "second"))
        ]
        torch.manual_seed(1)
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=epochs, callbacks=noises, enable_checkpointing=False, **options)
        trainer.fit(Pair(), DataLoader(tiny_data(), batch_size=8), ckpt_path=ckpt_path)
        return trainer, noises

    trainer, noises = run(1)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    assert not torch.equal(*(policy_vector(noise.hook) for noise in noises))
    _, whole = run(2)
    _, resumed = run(2, tmp_path / "both.ckpt")
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(policy_vector(one.hook), policy_vector(other.hook))
        assert one.hook.metrics["samples_seen"] == other.hook.metrics["samples_seen"] == 64


def test_the_next_folds_module_gets_a_policy_of_its_own():
    noise = callback()
    fit(Classifier(), noise)
    first = policy_vector(noise.hook)
    fit(Classifier(), noise, epochs=1)
    assert noise.hook.metrics["samples_seen"] == 32
    assert not torch.equal(first, policy_vector(noise.hook))


@pytest.mark.parametrize("log_metrics", [True, False])
def test_metrics_are_logged_where_asked_for(log_metrics):
    noise = callback(log_metrics=log_metrics)
    trainer = fit(Classifier(), noise, log_every_n_steps=2)
    logged = {name for name in trainer.callback_metrics if name.startswith("policy_noise/")}
    assert logged == ({f"policy_noise/{name}" for name in noise.hook.metrics} if log_metrics else set())
