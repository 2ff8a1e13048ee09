"""Training: resuming to the bit, several processes, augmentation."""

import dataclasses
import multiprocessing
import shutil
import signal

import numpy as np
import pytest
import timm
import torch
from ranks import START, free_port, run_ranks
from safetensors.torch import load_file, save_file
from training_apart import train_apart
from training_case import RECIPES, organs, run_of

from policy_noise.experiments import training
from policy_noise.experiments.batches import augment, epoch_batches, predict
from policy_noise.experiments.data import Split
from policy_noise.experiments.folders import load_image_folder
from policy_noise.experiments.images import Reading
from policy_noise.experiments.recipes import RECIPES as DECLARED
from policy_noise.experiments.recipes import as_published
from policy_noise.experiments.training import check_mask, create_model, train
from policy_noise.experiments.world import World

pytestmark = pytest.mark.usefixtures("undrawn")  # but the finished runs are drawn
ALONE = World(0, 1, torch.device("cpu"))


def equal_files(one, other, names=("model.safetensors", "metrics.jsonl")):
    return {name: (one / name).read_bytes() == (other / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The policy's training without a break."""
    folder = tmp_path_factory.mktemp("finished")
    train(run_of(folder, RECIPES["policy"], ALONE), RECIPES["policy"], organs(), ALONE)
    return folder


class TestResume:
    @pytest.mark.parametrize("when", ["log", "save"])
    def test_after_a_kill_the_weights_are_the_same(self, tmp_path, finished, when):
        killed = multiprocessing.get_context(START).Process(target=train_apart, args=(0, tmp_path, ["policy"], when))
        killed.start()
        killed.join(200)
        assert killed.exitcode == -signal.SIGKILL
        folder = tmp_path / "policy"
        assert not (folder / "model.safetensors").exists()
        state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
        assert state["step"] == 4  # killed in the second epoch: at step 5, or while step 6 was being saved
        train(run_of(folder, RECIPES["policy"], ALONE), RECIPES["policy"], organs(), ALONE)
        assert equal_files(folder, finished) == {"model.safetensors": True, "metrics.jsonl": True}
        left = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert left == ["last.pt", "weights-0001.pt", "weights-0002.pt"]

    def test_a_finished_run_stays_as_it_is(self, tmp_path, finished):
        before = (finished / "model.safetensors").read_bytes()
        train(run_of(finished, RECIPES["policy"], ALONE), RECIPES["policy"], organs(), ALONE)
        assert (finished / "model.safetensors").read_bytes() == before

    def test_another_number_of_processes_is_refused(self, tmp_path, finished):
        state = torch.load(finished / "checkpoints" / "last.pt", weights_only=True)
        (tmp_path / "checkpoints").mkdir()
        torch.save({**state, "ranks": state["ranks"] * 2}, tmp_path / "checkpoints" / "last.pt")
        with pytest.raises(ValueError, match="was written by 2 processes, and this run has 1"):
            train(run_of(tmp_path, RECIPES["policy"], ALONE), RECIPES["policy"], organs(), ALONE)


def test_the_log_holds_losses_scores_and_diagnostics(finished):
    run = run_of(finished, RECIPES["policy"], ALONE)
    entries = run.history()
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, 9))
    assert {"reward", "entropy", "mask_std", "policy_grad_norm"} <= entries[0].keys()
    assert len([entry for entry in entries if "val_f1" in entry]) == 2
    assert all(entry["val_loss"] > 0 for entry in entries if "val_f1" in entry)
    assert (finished / "figures" / "gallery-3-end.png").stat().st_size > 5000


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Three trainings on two processes, with half the batch on each."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(train_apart, folder, ["half_batch", "batch_norm", "policy_half_batch"], "", free_port())
    return folder


class TestSeveralProcesses:
    def test_two_agree_with_one_of_the_double_batch(self, tmp_path, two):
        recipe = RECIPES["plain"]
        train(run_of(tmp_path, recipe, ALONE), recipe, organs(), ALONE)
        folders = {tmp_path: recipe, two / "half_batch": RECIPES["half_batch"]}
        weights = [load_file(folder / "model.safetensors") for folder in folders]
        for name, value in weights[0].items():
            torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
        logs = [run_of(folder, used, ALONE).history() for folder, used in folders.items()]
        scores = [[entry for entry in log if "val_f1" in entry][-1] for log in logs]
        assert scores[1]["val_top1"] == scores[0]["val_top1"]
        assert scores[1]["val_roc_auc"] == pytest.approx(scores[0]["val_roc_auc"], abs=1e-6)

    def test_batch_statistics_are_the_same_on_all(self, two):
        ranks = [torch.load(two / "batch_norm" / f"rank{rank}.pt", weights_only=True)["model"] for rank in range(2)]
        assert any("running_mean" in name for name in ranks[0])
        assert all(torch.equal(value, ranks[1][name]) for name, value in ranks[0].items())

    def test_policies_are_the_same_on_all(self, two):
        folder = two / "policy_half_batch"
        ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
        for part in ("model", "policy"):
            assert ranks[0][part]
            assert all(torch.equal(value, ranks[1][part][name]) for name, value in ranks[0][part].items())
        ranks = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["ranks"]
        assert not torch.equal(ranks[0]["mask"], ranks[1]["mask"])  # each draws masks of its own


class TestBatches:
    recipe = RECIPES["plain"]

    def test_an_epoch_shows_every_image_once(self):
        seen = [index for batch in epoch_batches(32, self.recipe, 0, ALONE) for index in batch]
        assert sorted(seen) == list(range(32))
        assert seen != [index for batch in epoch_batches(32, self.recipe, 1, ALONE) for index in batch]

    def test_processes_share_the_double_batch(self):
        half = dataclasses.replace(self.recipe, batch_size=4)
        parts = [epoch_batches(32, half, 3, World(rank, 2, torch.device("cpu"))) for rank in range(2)]
        together = [one + other for one, other in zip(*parts, strict=True)]
        assert together == epoch_batches(32, self.recipe, 3, ALONE)

    def test_too_few_images(self):
        with pytest.raises(ValueError, match="needs 16 training images, got 15"):
            epoch_batches(15, self.recipe, 0, World(0, 2, torch.device("cpu")))


class TestAugment:
    present = torch.ones(8, dtype=torch.bool)
    images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("kind", ["shift", "resized_crop"])
    def test_two_processes_get_the_halves_of_one(self, kind):
        recipe = dataclasses.replace(RECIPES["plain"], augmentation=kind)
        whole = augment(self.images, recipe, 5, ALONE, self.present)
        halves = [
            augment(self.images[4 * r : 4 * r + 4], recipe, 5, World(r, 2, torch.device("cpu")), self.present[:4])
            for r in range(2)
        ]
        torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-5)
        assert not torch.allclose(whole, augment(self.images, recipe, 6, ALONE, self.present))

    @pytest.mark.parametrize("kind", ["shift", "resized_crop"])
    def test_a_dropped_image_does_not_change_the_others(self, kind):
        recipe = dataclasses.replace(RECIPES["plain"], augmentation=kind)
        present = self.present.clone()
        present[2] = False
        whole = augment(self.images, recipe, 5, ALONE, self.present)
        rest = augment(self.images[present], recipe, 5, ALONE, present)
        torch.testing.assert_close(rest, whole[present], rtol=0, atol=1e-5)

    def test_the_global_source_is_left_alone(self):
        before = torch.get_rng_state()
        augment(self.images, RECIPES["plain"], 1, ALONE, self.present)
        assert torch.equal(torch.get_rng_state(), before)

    def test_evaluation_takes_the_centre(self):
        recipe = dataclasses.replace(RECIPES["plain"], image_size=8, augmentation="resized_crop")
        out = augment(self.images, recipe, 0, ALONE, self.present, train=False)
        torch.testing.assert_close(out, (self.images[:, :, 4:12, 4:12] / 255 - recipe.mean) / recipe.std)

    def test_channels(self):
        recipe = dataclasses.replace(RECIPES["plain"], in_chans=3)
        out = augment(self.images, recipe, 0, ALONE, self.present)
        assert out.shape == (8, 3, 16, 16)
        assert torch.equal(out[:, 0], out[:, 2])


def test_predict_covers_the_split_once_in_its_order():
    data, recipe = organs(), RECIPES["plain"]
    model = create_model(recipe, 2).eval()
    targets, probabilities = predict(model, data.test, recipe, ALONE, multi_label=False)
    assert np.array_equal(targets, data.test.labels)
    with torch.no_grad():
        x = (torch.from_numpy(data.test.images).unsqueeze(1) / 255 - recipe.mean) / recipe.std
        expected = model(x).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_several_labels_an_image(tmp_path):
    data = organs()
    splits = {}
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        splits[name] = Split(split.images, np.stack([split.labels, np.arange(32) // 2 % 2, 1 - split.labels], 1))
    data = dataclasses.replace(data, class_names=("a", "b", "c"), **splits)
    recipe = dataclasses.replace(RECIPES["policy"], epochs=3, lr=4e-3)
    model = train(run_of(tmp_path, recipe, ALONE), recipe, data, ALONE)
    targets, probabilities = predict(model, data.test, recipe, ALONE, multi_label=True)
    assert targets.shape == probabilities.shape == (32, 3)
    last = [entry for entry in run_of(tmp_path, recipe, ALONE).history() if "val_f1" in entry][-1]
    assert last["val_roc_auc"] > 0.6
    assert "val_top5" not in last


@pytest.mark.parametrize("workers", [0, 1])
def test_files_on_disk_and_a_corrupt_one(tmp_path, recwarn, workers):
    from PIL import Image

    for split in ("train", "val", "test"):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(8):
                Image.fromarray(np.full((16, 16), 40 + 120 * label, np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "data" / "train" / "dark" / "3.png").write_bytes(b"broken")
    data = load_image_folder(tmp_path / "data", Reading(16, skip_bad_files=True))
    recipe = dataclasses.replace(RECIPES["plain"], workers=workers, epochs=2)
    train(run_of(tmp_path / "run", recipe, ALONE), recipe, data, ALONE)
    ends = [entry for entry in run_of(tmp_path / "run", recipe, ALONE).history() if "val_f1" in entry]
    assert [entry["files_skipped"] for entry in ends] == [1, 1]  # in each epoch
    if workers == 0:
        assert any("dark/3.png is left out" in str(warning.message) for warning in recwarn)


def test_paper_recipe_trains_with_its_own_policy_schedule(tmp_path):
    recipe = dataclasses.replace(
        DECLARED["paper"]["pretrain"],
        model="test_resnet",
        image_size=16,
        load_size=20,
        batch_size=8,
        epochs=1,
        workers=0,
        noise="learned",
        noise_options={"policy": "test_resnet", "grid_size": 8, "kernel_size": 5, "sigma": 2.0},
    )
    train(run_of(tmp_path, recipe, ALONE), recipe, organs(), ALONE)
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert state["policy_scheduler"]["_last_lr"] == [0.0]  # the cosine's end
    assert state["scheduler"]["_last_lr"] == [0.1]


EXTRA = dataclasses.replace(RECIPES["policy"], epochs=3, clean_epochs=1, extra_augmentation="mixup")


def test_clean_epochs_see_neither_masks_nor_the_extra_augmentation(tmp_path, monkeypatch):
    plain, seen = [], []
    augment, create = training.augment, training.create_model

    def look(*arguments, **options):
        x = augment(*arguments, **options)
        plain.append(x.clone())
        return x

    def keep(model, x):
        if model.training:
            seen.append(x.clone())

    def build(*arguments, **options):
        model = create(*arguments, **options)
        model.conv1[0].register_forward_pre_hook(
            lambda conv, args: seen.append(args[0].clone()) if model.training else None
        )
        return model

    monkeypatch.setattr(training, "augment", look)
    monkeypatch.setattr(training, "create_model", build)
    train(run_of(tmp_path, EXTRA, ALONE), EXTRA, organs(), ALONE)
    assert len(plain) == len(seen) == 12
    changed = [not torch.allclose(x, y, atol=1e-6) for x, y in zip(plain, seen, strict=True)]
    assert changed == [True] * 8 + [False] * 4
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "gallery-1-start.png", "gallery-3-end.png", "seen.png"]  # fmt: skip


@pytest.fixture(scope="module")
def finished_extra(tmp_path_factory):
    """The training with an extra augmentation without a break."""
    folder = tmp_path_factory.mktemp("extra")
    train(run_of(folder, EXTRA, ALONE), EXTRA, organs(), ALONE)
    return folder


@pytest.mark.parametrize("stop", [6, 10])
def test_an_extra_augmentation_goes_on_where_it_stopped(tmp_path, monkeypatch, finished_extra, stop):
    """In the middle of an epoch with it, and of one without."""
    save = training.Run.save

    def save_and_stop(self, name, state):
        save(self, name, state)
        if name == "last.pt" and state["step"] == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(run_of(tmp_path, EXTRA, ALONE), EXTRA, organs(), ALONE)
    train(run_of(tmp_path, EXTRA, ALONE), EXTRA, organs(), ALONE)
    assert equal_files(tmp_path, finished_extra) == {"model.safetensors": True, "metrics.jsonl": True}


def test_unknown_model():
    with pytest.raises(ValueError, match=r"model must be a name that timm\.list_models\(\) lists, got 'resnet9000'"):
        create_model(dataclasses.replace(RECIPES["plain"], model="resnet9000"), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_options": {"norm_layr": 1}}, r"model_options \{'norm_layr': 1\} do not suit test_resnet"),
    ],
)
def test_model_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        create_model(dataclasses.replace(RECIPES["plain"], **changes), 2)


def test_published_weights_come_from_a_file_with_their_normalization(tmp_path):
    published = timm.create_model("test_resnet")
    save_file(published.state_dict(), tmp_path / "weights.safetensors")
    own = {"pretrained": True, "weights": str(tmp_path / "weights.safetensors"), "model_options": {}}
    recipe = as_published(dataclasses.replace(RECIPES["plain"], **own), ["std"])
    cfg = timm.get_pretrained_cfg("test_resnet")
    assert (recipe.in_chans, recipe.mean, recipe.std) == (3, pytest.approx(np.mean(cfg.mean)), RECIPES["plain"].std)
    model = create_model(recipe, 2)
    assert torch.equal(model.conv1[0].weight, published.conv1[0].weight)
    assert model.get_classifier().out_features == 2


@pytest.mark.parametrize("options", [{"grid": 4}, {"grid_size": "four"}, {"p": 2.0}, {"policy": "resnet9000"}])
def test_noise_options_are_named_and_leave_the_model_as_it_was(options):
    recipe = dataclasses.replace(RECIPES["policy"], noise_options=options)
    model = create_model(recipe, 2)
    with pytest.raises(ValueError, match=r"noise_options \{.*\} do not suit preset='"):
        check_mask(model, recipe, multi_label=False)
    check_mask(model, RECIPES["policy"], multi_label=True)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("noise", ["plain", "learned"])
def test_divergence_names_the_step(tmp_path, noise):
    recipe = dataclasses.replace(RECIPES["plain"], noise=noise, lr=1e30)
    with pytest.raises(ValueError, match=r"training diverged: the loss at step \d \(epoch 1, lr .*\) is (nan|inf)"):
        train(run_of(tmp_path, recipe, ALONE), recipe, organs(), ALONE)


def test_outputs_that_are_not_finite_are_not_scored():
    recipe = RECIPES["plain"]
    model = create_model(recipe, 2)
    model.fc.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model diverged: its outputs are not finite for 32 of 32 images"):
        predict(model, organs().test, recipe, ALONE, multi_label=False)


def test_a_truncated_checkpoint_is_named(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"last\.pt is damaged.*delete it to start this run from the beginning"):
        train(run_of(folder, RECIPES["policy"], ALONE), RECIPES["policy"], organs(), ALONE)


def test_a_fresh_head_where_there_are_other_classes(tmp_path, finished):
    path, recipe = finished / "model.safetensors", RECIPES["plain"]
    own, kept, fresh = (
        create_model(recipe, 2, **options) for options in ({}, {"init": path}, {"init": path, "fresh_head": True})
    )
    assert torch.equal(fresh.fc.weight, own.fc.weight)
    assert not torch.equal(kept.fc.weight, own.fc.weight)
    assert torch.equal(fresh.conv1[0].weight, kept.conv1[0].weight)
