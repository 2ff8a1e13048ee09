"""Few-shot transfer."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from policy_noise.experiments.data import ImageSet, Split, to_tensor
from policy_noise.experiments.few_shot import (
    compare,
    draw_few_shot,
    embed,
    fine_tune,
    linear_probe,
    summarise,
)
from policy_noise.experiments.folders import load_image_folder
from policy_noise.experiments.images import Reading
from policy_noise.experiments.initialisation import Initialisation, parse_initialisation
from policy_noise.experiments.recipes import RECIPES, override
from policy_noise.experiments.runs import Run
from policy_noise.experiments.world import World
from policy_noise.heated import save_heated

ALONE = World(0, 1, torch.device("cpu"))


def brightness_set(images=24, multi_label=False):
    """Two classes that differ in brightness."""
    rng = np.random.default_rng(0)

    def split():
        labels = np.arange(images) % 2
        pictures = rng.integers(0, 60, (images, 32, 32)) + labels[:, None, None] * 120
        columns = np.stack([labels, np.arange(images) // 2 % 2], 1)
        return Split(pictures.astype(np.uint8), columns if multi_label else labels)

    return ImageSet("bright", split(), split(), split(), ("dark", "light"), {})


def small(**changes):
    return dataclasses.replace(RECIPES["small"]["transfer"], **{"shots": (4, 8), "trials": 2, **changes})


class TestDraw:
    def test_even_over_classes(self):
        labels = np.repeat([0, 1, 2], [50, 10, 3])
        drawn = draw_few_shot(labels, 12, np.random.default_rng(0))
        assert len(set(drawn.tolist())) == 12
        assert sorted(np.bincount(labels[drawn]).tolist()) == [3, 4, 5]
        assert np.bincount(labels[drawn])[2] == 3

    def test_fewer_than_classes(self):
        counts = np.zeros(10, int)
        for seed in range(200):
            drawn = draw_few_shot(np.arange(100) % 10, 4, np.random.default_rng(seed))
            assert len(np.unique(drawn % 10)) == 4
            counts += np.bincount(drawn % 10, minlength=10)
        assert counts.min() > 50  # 80 expected of each

    def test_images_are_drawn_alike(self):
        counts = np.zeros(12, int)
        for seed in range(600):
            counts[draw_few_shot(np.arange(12) % 2, 6, np.random.default_rng(seed))] += 1
        assert counts.min() > 240  # 300 expected
        assert counts.max() < 360

    def test_too_many(self):
        with pytest.raises(ValueError, match=r"shots must lie in 1 to 5.*got 6"):
            draw_few_shot(np.zeros(5, int), 6, np.random.default_rng(0))


class TestProbe:
    def test_separable(self):
        features = np.array([[0.0], [0.1], [1.0], [1.1]])
        probabilities = linear_probe(features, np.array([0, 0, 2, 2]), np.array([[0.0], [1.2]]), 3)
        assert probabilities.argmax(1).tolist() == [0, 2]
        assert (probabilities[:, 1] == 0).all()
        assert probabilities.sum(1) == pytest.approx([1, 1])

    def test_single_class(self):
        assert linear_probe(np.ones((2, 1)), np.array([1, 1]), np.ones((3, 1)), 2).tolist() == [[0, 1]] * 3

    def test_several_labels(self):
        features = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        labels = np.array([[0, 1], [0, 1], [1, 1], [1, 1]])
        probabilities = linear_probe(features, labels, np.array([[0.0, 0.5], [1.0, 0.5]]), 2)
        assert probabilities[0, 0] < 0.5 < probabilities[1, 0]
        assert (probabilities[:, 1] == 1).all()


def test_embed_leaves_the_model_as_it_was():
    model = timm.create_model("test_resnet", in_chans=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = embed(model, torch.randn(5, 1, 32, 32))
    assert features.shape == (5, model.num_features)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("multi_label", [False, True])
def test_fine_tuning_learns(multi_label):
    torch.manual_seed(0)
    data = brightness_set(multi_label=multi_label)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=2)
    images = torch.from_numpy(data.train.images).float().div(128).sub(1).unsqueeze(1)
    labels = torch.from_numpy(data.train.labels)
    fine_tune(model, images, labels, small(mode="full", steps=30, batch_size=16), 0)
    with torch.no_grad():
        output = model.eval()(images)
    correct = (output[:, 0] > 0) == (labels[:, 0] > 0) if multi_label else output.argmax(1) == labels
    assert correct.float().mean() > 0.9


class TestCompare:
    inits = (
        Initialisation("scratch", "scratch", "test_resnet"),
        Initialisation("policy", "scratch", "test_resnet"),
    )

    @pytest.mark.parametrize("mode", ["linear", "full"])
    def test_equal_weights_give_equal_scores(self, tmp_path, mode):
        data, recipe = brightness_set(), small(mode=mode, steps=2, shots=(8,))
        run = Run(tmp_path, "transfer", recipe, {"name": "bright"}, resume=False)
        lines = compare(run, recipe, [data], self.inits, ALONE)
        assert len(lines) == 4
        by_init = {name: [line["f1"] for line in lines if line["init"] == name] for name in ("scratch", "policy")}
        assert by_init["scratch"] == by_init["policy"]

    def test_resumed_after_a_stop(self, tmp_path):
        data, recipe = brightness_set(), small()
        whole = Run(tmp_path / "whole", "transfer", recipe, {"name": "bright"}, resume=False)
        expected = compare(whole, recipe, [data], self.inits, ALONE)
        assert len(expected) == 8
        cut = Run(tmp_path / "cut", "transfer", recipe, {"name": "bright"}, resume=False)
        for line in expected[:3]:
            cut.log(line)
        with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
            file.write('{"data": "bri')
        assert compare(cut, recipe, [data], self.inits, ALONE) == expected

    def test_several_labels(self, tmp_path):
        data, recipe = brightness_set(multi_label=True), small(shots=(8,), trials=1)
        run = Run(tmp_path, "transfer", recipe, {"name": "bright"}, resume=False)
        line = compare(run, recipe, [data], self.inits[:1], ALONE)[0]
        assert line["roc_auc"] > 0.6
        assert "top5" not in line

    def test_a_full_transfer_does_not_depend_on_the_order_of_equally_many_classes(self, tmp_path):
        """The pretraining's head belongs to other classes, also where there are as many."""
        data, recipe = brightness_set(), small(mode="full", steps=3, shots=(8,), lr=1e-4)
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", in_chans=1, num_classes=2)
        save_heated(model, tmp_path / "model.safetensors", {"recipe": {"model": "test_resnet", "in_chans": 1}})
        init = parse_initialisation(f"policy={tmp_path}", None, None)
        made = init.create(2, seed=3)
        assert torch.equal(made.conv1[0].weight, model.conv1[0].weight)
        torch.manual_seed(3)
        assert torch.equal(made.fc.weight, timm.create_model("test_resnet", in_chans=1, num_classes=2).fc.weight)
        run = Run(tmp_path / "run", "transfer", recipe, {"name": "bright"}, resume=False)
        assert len(compare(run, recipe, [data], [init], ALONE)) == 2

    def test_unreadable_files_are_left_out_and_counted(self, tmp_path):
        for split in ("train", "val", "test"):
            for label, name in enumerate(("dark", "light")):
                folder = tmp_path / "data" / split / name
                folder.mkdir(parents=True)
                for index in range(8):
                    Image.fromarray(np.full((16, 16), 40 + 120 * label, np.uint8)).save(folder / f"{index}.png")
                (folder / "3.png").write_bytes(b"broken")
        data = load_image_folder(tmp_path / "data", Reading(32, skip_bad_files=True))
        recipe = small(shots=(12,))
        run = Run(tmp_path / "run", "transfer", recipe, {"name": "data"}, resume=False)
        with pytest.warns(UserWarning, match="is left out"):
            lines = compare(run, recipe, [data], self.inits, ALONE)
        assert [line["files_skipped"] for line in lines] == [2] * 4
        assert [line["top1"] for line in lines] == [1.0] * 4

    def test_images_reach_the_device_batch_by_batch(self, tmp_path, monkeypatch):
        seen = []

        def watched(images, mean, std):
            seen.append(len(images))
            return to_tensor(images, mean, std)

        monkeypatch.setattr("policy_noise.experiments.few_shot.to_tensor", watched)
        data, recipe = brightness_set(images=600), small(shots=(8,), trials=1)
        run = Run(tmp_path, "transfer", recipe, {"name": "bright"}, resume=False)
        compare(run, recipe, [data], self.inits[:1], ALONE)
        assert seen == [8, 256, 256, 88]  # of 600 training images the 8 that were drawn

    def test_divergence_names_the_trial(self, tmp_path):
        data, recipe = brightness_set(), small(mode="full", shots=(8,), lr=1e30)
        run = Run(tmp_path, "transfer", recipe, {"name": "bright"}, resume=False)
        with pytest.raises(ValueError, match=r"fine-tuning diverged: from scratch on 8 images, trial 0"):
            compare(run, recipe, [data], self.inits[:1], ALONE)


def test_a_trial_that_the_log_holds_twice_counts_once():
    line = {"data": "d", "init": "scratch", "source": "scratch", "shots": 4, "trial": 0, "f1": 0.486}
    assert np.isnan(summarise([line, line], "f1")["d"]["scratch"][4].low)


def test_summary_is_over_runs_where_there_are_several():
    def line(source, trial, f1):
        return {"data": "d", "init": "policy", "source": source, "shots": 8, "trial": trial, "f1": f1}

    one = [line("a", 0, 0.2), line("a", 1, 0.4)]
    assert summarise(one, "f1")["d"]["policy"][8].mean == pytest.approx(0.3)
    two = summarise([*one, line("b", 0, 0.5), line("b", 1, 0.5)], "f1")["d"]["policy"][8]
    assert two.mean == pytest.approx(0.4)
    assert (two.low, two.high) == (0.0, 1.0)  # 0.1 * t(0.975, 1) = 1.27 to either side, runs' means 0.3 and 0.5
    three = summarise([*one, line("b", 0, 0.5), line("c", 0, 0.4)], "f1")["d"]["policy"][8]
    assert three.high - three.mean == pytest.approx(0.1 / 3**0.5 * 4.3027, rel=1e-3)  # t(0.975, 2)


class TestInitialisation:
    def test_of_a_run(self, tmp_path):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", in_chans=1, num_classes=4)
        metadata = {"recipe": {"model": "test_resnet", "in_chans": 1, "mean": 0.4, "std": 0.2}}
        save_heated(model, tmp_path / "model.safetensors", metadata)
        init = parse_initialisation(f"policy={tmp_path}", None, None)
        assert (init.label, init.model, init.in_chans, init.normalization) == ("policy", "test_resnet", 1, (0.4, 0.2))
        made = init.create(3, seed=7)
        assert torch.equal(next(made.parameters()), next(model.parameters()))
        assert made.get_classifier().out_features == 3
        beside = parse_initialisation("scratch", None, init)
        assert (beside.source, beside.model, beside.in_chans) == ("scratch", "test_resnet", 1)

    @pytest.mark.parametrize("in_chans", [1, 3])
    def test_of_timms_weights_in_a_file(self, tmp_path, in_chans):
        torch.manual_seed(0)
        published = timm.create_model("test_resnet")  # 3 channels, 1000 classes, as timm publishes it
        save_file(published.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
        like = Initialisation("policy", "somewhere", "test_resnet", in_chans)
        init = parse_initialisation(f"imagenet={tmp_path / 'model.safetensors'}", None, like)
        made = init.create(5, seed=7)
        assert made.get_classifier().out_features == 5
        expected = published.conv1[0].weight if in_chans == 3 else published.conv1[0].weight.sum(1, keepdim=True)
        torch.testing.assert_close(made.conv1[0].weight, expected)
        torch.testing.assert_close(made.layer3[0].conv1.weight, published.layer3[0].conv1.weight)

    def test_timms_weights_of_another_architecture(self, tmp_path):
        path = tmp_path / "model.safetensors"
        save_file(timm.create_model("test_vit").state_dict(), path, {"format": "pt"})
        init = parse_initialisation(f"imagenet={path}", "test_resnet", None)
        with pytest.raises(ValueError, match=r"initialisation 'imagenet': timm's weights of test_resnet.*safetensors"):
            init.create(5, seed=0)
        with pytest.raises(FileNotFoundError, match="must be a safetensors file"):
            parse_initialisation(f"imagenet={tmp_path}", "test_resnet", None)

    def test_timms_weights_that_cannot_be_fetched(self, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError("no network")

        monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
        init = parse_initialisation("imagenet", "test_resnet", None)
        with pytest.raises(ValueError, match=r"'imagenet'.*test_resnet cannot be loaded.*no network.*imagenet=FILE"):
            init.create(5, seed=0)

    @pytest.mark.parametrize("text", ["scratch", "imagenet"])
    def test_needs_a_model(self, text):
        with pytest.raises(ValueError, match="needs the name of a timm model"):
            parse_initialisation(text, None, None)
        assert parse_initialisation(text, "resnet18", None).model == "resnet18"

    def test_bad_texts(self, tmp_path):
        with pytest.raises(ValueError, match="LABEL=RUN"):
            parse_initialisation("runs", None, None)
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
            parse_initialisation(f"policy={tmp_path}", None, None)


def test_override_reaches_the_shots():
    assert override(small(), ["shots=[2]"]).shots == [2]
