"""The callback for Hugging Face's Trainer, in real Trainers."""

import pytest
import torch
from tiny import SETTINGS, Watch, assert_clean, assert_masked, parameters_equal, policy_vector, tiny_data
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from policy_noise import attach
from policy_noise.integrations.transformers import PolicyNoiseCallback


class Images(torch.utils.data.Dataset):
    def __init__(self, kind="single"):
        images, targets = tiny_data().tensors
        labels = {
            "single": targets,
            "multi": nn.functional.one_hot(targets, 4).float(),
            "regression": targets.float().view(-1, 1),
        }[kind]
        self.rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def network(num_labels=4):
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=num_labels)
    )


def train(model, folder, noise, kind="single", resume=None, compute_loss_func=None, **options):
    settings = {"max_steps": 8, "save_steps": 4, "eval_strategy": "epoch", **options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Images(kind),
        eval_dataset=Images(kind),
        callbacks=[noise] if noise else [],
        compute_loss_func=compute_loss_func,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(**settings):
    torch.manual_seed(1)
    return PolicyNoiseCallback(**{**SETTINGS, **settings})


@pytest.mark.parametrize(("kind", "labels"), [("single", 4), ("multi", 4), ("regression", 1)])
def test_loss_inside_the_model(tmp_path, kind, labels):
    model, noise = network(labels), callback()
    watch = Watch(model.resnet)
    train(model, tmp_path, noise, kind)
    images = tiny_data().tensors[0]
    assert_masked(watch.training, images)
    assert_clean(watch.validation, images)
    assert noise.hook.metrics["samples_seen"] == 64
    assert noise.hook.augmentation.policy.head.weight.abs().sum() > 0


def test_reward_is_the_loss_that_the_model_computes(tmp_path):
    model, noise = network(), callback(p=1.0)
    losses = []
    model.register_forward_hook(lambda module, args, output: losses.append(output.loss.item()))
    train(model, tmp_path, noise, max_steps=1, eval_strategy="no", save_strategy="no")
    assert len(losses) == 1
    assert noise.hook.metrics["reward"] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(("step", "seed"), [(6, None), (4, None), (4, 0)])
def test_resume_equals_uninterrupted(tmp_path, step, seed):
    """Between epochs the Trainer does not restore the global random state. The hook does not need it."""

    def noise_with_generator():
        return callback() if seed is None else callback(generator=torch.Generator().manual_seed(seed))

    whole, noise_whole = network(), noise_with_generator()
    train(whole, tmp_path / "whole", noise_whole, save_steps=step)
    resumed, noise = network(), noise_with_generator()
    checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
    train(resumed, tmp_path / "resumed", noise, save_steps=step, resume=str(checkpoint))
    assert parameters_equal(whole, resumed)
    assert torch.equal(policy_vector(noise_whole.hook), policy_vector(noise.hook))


def test_foreign_checkpoint_warns_and_ours_loads_into_a_plain_trainer(tmp_path):
    train(network(), tmp_path / "plain", None, max_steps=4)
    with pytest.warns(UserWarning, match="saved without a policy") as said:
        train(network(), tmp_path / "ours", callback(), resume=str(tmp_path / "plain" / "checkpoint-4"))
    assert [w.filename for w in said if "saved without a policy" in str(w.message)] == [__file__]
    model = network()
    trainer = train(model, tmp_path / "back", None, resume=str(tmp_path / "ours" / "checkpoint-8"), max_steps=12)
    assert trainer.state.global_step == 12


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"bf16": True}, {"torch_compile": True}])
def test_options_of_the_trainer(tmp_path, options):
    if "torch_compile" in options:
        options = {**options, "torch_compile_backend": "eager"}
    model, noise = network(), callback()
    train(model, tmp_path, noise, max_steps=4, save_strategy="no", **options)
    accumulation = options.get("gradient_accumulation_steps", 1)
    assert noise.hook._draws.steps == 4
    assert noise.hook.metrics["samples_seen"] == 4 * 8 * accumulation


def test_loss_outside_the_model(tmp_path):
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    noise = callback(criterion=criterion)

    def loss(outputs, labels, num_items_in_batch=None):
        return criterion(outputs.logits, labels)

    train(network(), tmp_path, noise, compute_loss_func=loss)
    assert noise.hook.metrics["samples_seen"] == 64


def test_label_smoothing_of_the_trainer_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1.*compute_loss_func"):
        train(network(), tmp_path, callback(), label_smoothing_factor=0.1)


def test_loss_outside_without_criterion_says_what_to_do(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs.logits, labels)

    with pytest.raises(ValueError, match="called without labels: pass criterion"):
        train(network(), tmp_path, callback(), compute_loss_func=loss)


class Weighted(Trainer):
    """Keeps the labels in the model's inputs, but trains on its own weighted loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        weight = torch.tensor([1.0, 5.0, 1.0, 1.0])
        loss = nn.functional.cross_entropy(output.logits, inputs["labels"], weight=weight)
        return (loss, output) if return_outputs else loss


def test_a_compute_loss_that_leaves_the_models_loss_aside_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "Trainer", Weighted)
    with pytest.warns(UserWarning, match="training does not use it") as caught:
        train(network(), tmp_path, callback(), max_steps=3, eval_strategy="no", save_strategy="no")
    assert [w.filename for w in caught if "training does not use it" in str(w.message)] == [__file__]


def test_the_models_own_loss_is_not_complained_about(tmp_path, recwarn):
    train(network(), tmp_path, callback(), max_steps=2, eval_strategy="no", save_strategy="no")
    assert not [warning for warning in recwarn if "training does not use it" in str(warning.message)]


def test_labelled_rows_of_a_vision_transformer_in_a_plain_loop():
    images, targets = (tensor[:8] for tensor in tiny_data().tensors)
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=images.shape[-1],
        patch_size=8,
        num_channels=images.shape[1],
        num_labels=4,
    )
    model, criterion = ViTForImageClassification(config).train(), nn.CrossEntropyLoss()
    hook = attach(model, torch.optim.AdamW(model.parameters()), criterion, **SETTINGS)
    labelled = torch.arange(8) % 2 == 0
    logits = model(pixel_values=images).logits
    criterion(logits[labelled], targets[labelled]).backward()
    hook._close_window()
    (observation,) = hook.learner._window
    assert torch.equal(observation.valid, labelled)
    expected = nn.functional.cross_entropy(logits, targets, reduction="none").detach()
    torch.testing.assert_close(observation.loss[labelled], expected[labelled])


def test_the_next_folds_model_gets_a_policy_of_its_own(tmp_path):
    """Training the same model again continues with its policy."""
    noise = callback()
    options = {"max_steps": 2, "save_strategy": "no", "eval_strategy": "no"}
    model = network()
    train(model, tmp_path, noise, **options)
    train(model, tmp_path, noise, **options)
    assert noise.hook.metrics["samples_seen"] == 32
    train(network(), tmp_path, noise, **options)
    assert noise.hook.metrics["samples_seen"] == 16
