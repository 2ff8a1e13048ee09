"""The study's harness: declarations, pairing by seed, shifts, and every kind of run end to end on a tiny task."""

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import study
import study_tasks
import study_training
from study_conditions import CONDITIONS, SUITES, Condition, Job, jobs
from study_tasks import EvalSet, FewShot, Task, TaskData

import policy_noise.functional as PF
from policy_noise import MaskSample

TASK = Task("tiny", "organs", 16, per_class=8, epochs=4, batch_size=8)


@pytest.fixture(scope="module")
def data() -> TaskData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(12)
    images = torch.randint(0, 80, (36, 1, 16, 16), generator=generator) + 80 * labels.view(-1, 1, 1, 1)
    images = images.to(torch.uint8)
    clean = EvalSet(images[:12], labels[:12].numpy())
    evals = {"val": {"clean": clean, "contrast:1": clean, "ct2": EvalSet(images[:12], labels[:12].numpy() % 2, (0, 1))}}
    return TaskData(TASK, images, labels, 3, 0.4, 0.25, evals)


def test_suites_name_declared_conditions_and_seeds_come_first():
    for suite in SUITES:
        declared = jobs(suite)
        assert len({study.key_of(job) for job in declared}) == len(declared)
        seeds = [job.seed for job in declared]
        assert seeds == sorted(seeds)
    assert {job.splits for job in jobs("screen")} == {("val",)}  # test is not looked at while choosing


def test_key_follows_the_configuration():
    job = jobs("screen")[0]
    other = dataclasses.replace(job, condition=dataclasses.replace(job.condition, signal="band"))
    assert study.key_of(job) == study.key_of(dataclasses.replace(job))
    assert len({study.key_of(job), study.key_of(other), study.key_of(dataclasses.replace(job, seed=9))}) == 3


def test_committed_results_are_those_of_their_suite():
    results = Path(study.__file__).parent / "results"
    for name, suites, first_seed, whole in (
        ("confirm", ("confirm",), 0, True),
        ("screen", ("screen",), 0, False),
        ("dose", ("dose", "dose-shape"), 0, False),
        ("third-screen", ("third-screen",), 100, True),
        ("default-screen", ("default-screen",), 200, True),
        ("transfer", ("transfer",), 0, True),
        ("twin", ("paper-twin",), 0, False),
        ("third", ("third", "third-coop"), 0, False),
        ("large", ("large", "large-broad", "large-level", "large-learned-level"), 0, True),
        ("fourth", ("default", "brightness"), 0, True),
        ("level", ("level",), 0, True),
        ("level-screen", ("level-screen",), 300, True),
        ("lead", ("learned-level", "level-lead"), 0, True),
        ("apart", ("apart",), 0, True),
        ("augment-screen", ("augment-screen",), 400, True),
        ("augment", ("augment", "large-augment"), 0, True),
        ("default-anew", ("default-anew",), 500, True),
        ("learned-augment", ("learned-augment", "large-learned-augment", "learned-augment-shuffled"), 0, True),
        ("jitter", ("jitter", "jitter-learned"), 0, True),
        ("pathwise-screen", ("pathwise-screen",), 600, False),
    ):
        found = {record["key"] for record in study.read_results(results / f"study-{name}.jsonl.gz")}
        declared = {study.key_of(job) for suite in suites for job in jobs(suite, first_seed=first_seed)}
        assert found == declared if whole else found < declared


def test_workers_end_with_a_killed_parent():
    script = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
import study
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), study._start_worker, ("cpu",))
print(pool.submit(abs, -1).result(), flush=True)
pool.submit(time.sleep, 600).result()
"""
    folder = str(Path(study.__file__).parent)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout.readline() == "1\n"
        process.kill()
        process.communicate(timeout=60)  # the output is closed when the last of them has gone


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown"):
        jobs("screen", conditions=("nothing",))


def test_batches_are_those_of_the_seed(data):
    first, second, other = (study_training.Batches(data, seed, 4) for seed in (0, 0, 1))
    assert len(first) == 4 * 3
    assert torch.equal(first[5][0], second[5][0])
    assert not torch.equal(first.order, other.order)
    indices = study_tasks.train_indices(data, 0)
    assert np.bincount(data.labels[indices]).tolist() == [8, 8, 8]


def test_a_batch_that_is_not_moved_is_the_images(data):
    batches = study_training.Batches(data, 0, 1)
    batches.moves.fill_(1)  # the middle of a reach of one pixel
    images, labels = batches[0]
    assert torch.equal(images, data.images[batches.order[0]].float() / 255)
    assert torch.equal(labels, data.labels[batches.order[0]])


@pytest.mark.parametrize("name", study_tasks.SHIFTS)
def test_shifts_grow_with_severity(name):
    function, levels = study_tasks.SHIFTS[name]
    coarse = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    distances = []
    for level in levels:
        shifted = function(images, torch.Generator().manual_seed(0), level)
        assert torch.equal(shifted, function(images, torch.Generator().manual_seed(0), level))
        assert shifted.shape == images.shape
        distances.append(float((shifted - images).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_corruptions_start_from_seeds_of_their_own_and_leave_the_global_one(monkeypatch):
    class Noise:
        def apply(self, image, severity):
            image = np.asarray(image)
            assert image.shape == (16, 16, 3)
            return np.uint8(np.clip(image + (1 + severity) * np.random.normal(size=image.shape), 0, 255))  # noqa: NPY002

    class Impulse:
        def apply(self, image, severity):
            return np.asarray(image) + self.rng.integers(2, size=(16, 16, 1), dtype=np.uint8)

    registry = types.ModuleType("medmnistc.corruptions.registry")
    registry.CORRUPTIONS_DS = {"breastmnist": {"noise": Noise(), "impulse": Impulse()}}
    for name in ("medmnistc", "medmnistc.corruptions"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    images = np.full((3, 16, 16), 100, np.uint8)
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first, second, other = (study_tasks.medmnist_c("breastmnist", images, seed) for seed in (1, 1, 500))
    assert np.random.rand() == expected  # noqa: NPY002
    assert list(first) == [f"{name}-{severity}" for name in ("noise", "impulse") for severity in (1, 3, 5)]
    for name, corrupted in first.items():
        assert corrupted.shape == images.shape
        assert corrupted.dtype == np.uint8
        assert np.array_equal(corrupted, second[name])
        assert not np.array_equal(corrupted, other[name])


def test_few_shot_transfer_probes_the_features(data, monkeypatch):
    monkeypatch.setattr(study_training, "SHOTS", (6, 24))
    target = FewShot(data.images, data.labels.numpy(), data.evals["val"]["clean"], 3)
    model = study_training.Classifier("resnet", 16, 5)
    scores = study_training.evaluate(model, dataclasses.replace(data, few_shot={"val": target}, num_classes=5), "val")
    assert scores["few_shot:6"] > 0.5  # classes differ by brightness, which random features keep
    assert scores["few_shot:24"] > 0.9
    assert "few_shot:6" not in study_training.evaluate(model, dataclasses.replace(data, num_classes=5), "val")


def test_shuffled_masks_go_to_the_neighbour_and_their_credit_comes_back():
    mask = study_training.StudyMask(in_chans=1, grid_size=2, p=0.5)
    images = torch.rand(6, 1, 8, 8)
    sample = mask.sample(images, torch.Generator().manual_seed(0))
    plain = mask.render(sample, (8, 8))
    mask.shuffled = True
    shuffled = mask(torch.ones_like(images) - _black(images), sample)
    assert torch.equal(mask.applied, sample.applied.roll(1))
    # Where an image was changed tells which mask it got.
    changed = (shuffled != torch.ones_like(images) - _black(images)).flatten(1).any(1)
    assert torch.equal(changed, (plain != 1).flatten(1).any(1).roll(1) & changed)
    signal = torch.arange(6.0)
    assert mask.credit(signal)[0] == 1  # mask 0 was applied to image 1


def _black(images: torch.Tensor) -> torch.Tensor:
    """Zero in one corner, so that the darkest pixel is 0 and the mask shows everywhere else."""
    black = torch.zeros_like(images)
    black[:, :, 0, 0] = 1
    return black


@pytest.mark.parametrize(("kind", "features"), [("resnet", 128), ("resnet-half", 128), ("vit", 96), ("vit-half", 96)])
def test_half_a_classifier_sees_half_the_side(kind, features):
    model = study_training.Classifier(kind, 32, 5)
    logits, pooled = model(torch.rand(2, 1, 32, 32))
    assert (logits.shape, pooled.shape) == ((2, 5), (2, features))
    maps = model.network.forward_features(torch.rand(2, 1, 32, 32))
    places = {"resnet": (4, 4), "resnet-half": (2, 2), "vit": (65, 96), "vit-half": (17, 96)}[kind]
    assert maps.shape[-2:] == places


KINDS = (
    "plain",
    "frozen-s100-p50",
    "frozen-wide-p50",
    "frozen-curriculum",
    "coop-static",
    "adv-smooth-shuffled",
    "coop-wide",
    "teacher",
    "band",
    "relative-adv",
    "align",
    "bias-field",
    "gaussian-noise",
    "random-erasing",
    "mixup",
    "randaugment",
    "color-jitter",
    "color-jitter-2x2-dose10-level20",
    "color-jitter-coop-2x2-dose10-level20-shuffled",
    "adv-throughout",
    "coop-dose20-shuffled",
    "frozen-dose20-sparse",
    "frozen-paper",
    "adv-dose20-class",
    "virtual-dose20",
    "robust-2x2-dose20",
    "coop-dose20-long",
    "coop-dose20-recalibrated",
    "pathwise-adv-2x2-dose10-level20-bounded",
    "pathwise-robust-2x2-dose10-level20-bounded-shuffled",
)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_run(data, name):
    condition = CONDITIONS[name]
    if "grid_size" not in condition.mask and condition.preset:
        condition = dataclasses.replace(condition, mask={**condition.mask, "grid_size": 4})
    result = study_training.train(Job(TASK, condition, 0, ("val",)), data)
    assert result["steps"] == 12
    assert set(result["scores"]["val"]) == {"clean", "contrast:1", "ct2"}
    assert all(0 <= value <= 1 for value in result["scores"]["val"].values())
    assert np.isfinite([point["loss"] for point in result["curve"]]).all()
    # The last quarter of a heated run has no policy.
    last = {"heated": 9, "long": 6, "throughout": 12, "recalibrated": 12}[condition.schedule]
    assert [point["step"] for point in result["policy"]] == (list(range(1, last + 1)) if condition.preset else [])
    if condition.family == "frozen":
        assert {point["alpha"] for point in result["policy"]} == {result["policy"][0]["alpha"]}
    if condition.family == "learned":
        assert len({point["alpha"] for point in result["policy"]}) > 1
    json.dumps(result)


def test_jitter_is_of_each_images_brightness_and_contrast():
    torch.manual_seed(0)
    images = 0.5 + 0.05 * torch.rand(64, 1, 16, 16)  # far from where it would be clamped
    jitter = study_training.Augmentation("color_jitter", 3, torch.device("cpu"), 0)
    changed, _ = jitter(images, torch.zeros(64))
    assert changed.shape == images.shape
    x, y = (values.flatten(1) - values.flatten(1).mean(1, keepdim=True) for values in (images, changed))
    slope = (x * y).sum(1) / x.square().sum(1)
    torch.testing.assert_close(y, slope[:, None] * x, rtol=0, atol=1e-5)
    level = changed.flatten(1).mean(1) / images.flatten(1).mean(1)
    for factor in (level, slope / level):  # brightness first and contrast about the mean, or the other way round
        assert 0.599 < factor.min() < 0.7 < 1.3 < factor.max() < 1.401
        assert factor.std() == pytest.approx(0.8 / 12**0.5, rel=0.2)


def test_a_virtual_step_is_one_of_the_last_layer(data):
    torch.manual_seed(0)
    model = study_training.Classifier("resnet", 16, 3)
    images, others = (data.images[part].float() / 255 for part in (slice(0, 5), slice(5, 9)))
    labels, other_labels = data.labels[:5], data.labels[5:9]
    signals = study_training.Signals("virtual", model, torch.Generator(), {})
    signals.before(images, labels, others, other_labels)
    model.eval()
    logits, features = model(images)
    found = signals.after(images, torch.ones(5, dtype=torch.bool), logits.detach(), features, labels)
    # By hand: a gradient step of the layer itself on each image, of one length for all.
    with torch.no_grad():
        length = 1 / (model(others)[1].square().sum(1).mean() + 1)
    head = model.network.get_classifier()
    for index in range(5):
        weight, bias = torch.autograd.grad(
            torch.nn.functional.cross_entropy(head(features[index : index + 1]), labels[index : index + 1]),
            [head.weight, head.bias],
        )
        moved = torch.nn.functional.linear(model(others)[1], head.weight - length * weight, head.bias - length * bias)
        expected = torch.nn.functional.cross_entropy(moved, other_labels)
        torch.testing.assert_close(found[index], expected.detach())
    assert found.std() > 0


def test_the_pathwise_surrogate_has_the_gradient_of_pytorchs_own_draw():
    logarithms = torch.randn(5, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slopes = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    concentration1, concentration0 = logarithms.exp().unbind(-1)
    torch.manual_seed(2)
    drawn = torch.distributions.Beta(concentration1, concentration0).rsample()
    (expected,) = torch.autograd.grad((drawn * slopes).sum(), logarithms, retain_graph=True)
    torch.manual_seed(2)
    action = PF.sample_beta(concentration1, concentration0)
    assert torch.equal(action, drawn)
    sample = MaskSample(action, concentration1, concentration0, slopes.new_zeros(5), slopes.new_ones(5).bool())
    surrogate = study_training.pathwise_surrogate(sample, slopes)
    assert surrogate.shape == (5,)
    torch.testing.assert_close(torch.autograd.grad(surrogate.sum(), logarithms)[0], expected)


@pytest.mark.parametrize("signal", ["loss", "robust"])
def test_slopes_are_those_of_the_signal_in_each_cell(data, signal):
    torch.manual_seed(0)
    normalization = {"mean": data.mean, "std": data.std}
    model = study_training.Classifier("resnet", 16, 3).double()
    mask = study_training.StudyMask(1, 2, pattern_std=0.1, brightness_std=0.2, policy="static", **normalization)
    mask.shuffled = True
    images, others = (data.images[part].double() / 255 for part in (slice(0, 6), slice(6, 12)))
    labels, other_labels = data.labels[:6], data.labels[6:12]
    signals = study_training.Signals(f"pathwise-{signal}", model, torch.Generator().manual_seed(0), normalization)
    signals.before(images, labels, others, other_labels)
    sample = mask.sample(images)
    sample = dataclasses.replace(sample, action=sample.action.double(), applied=torch.tensor([True] * 5 + [False]))

    @torch.no_grad()
    def total(action):
        masked = mask(images, dataclasses.replace(sample, action=action))
        model.eval()
        return signals.after(masked, mask.applied, *model(masked), labels).sum()

    action = sample.action.clone().requires_grad_()
    masked = mask(images, dataclasses.replace(sample, action=action))
    slopes = signals.slopes(action, masked, mask.applied, labels)
    assert model.training
    assert not slopes[5].any()  # not applied
    for index in ((0, 0, 0, 0), (2, 0, 1, 0), (4, 0, 1, 1)):
        step = torch.zeros_like(sample.action)
        step[index] = 1e-5
        numeric = (total(sample.action + step) - total(sample.action - step)) / 2e-5
        torch.testing.assert_close(slopes[index], numeric, rtol=1e-3, atol=1e-6)


def test_a_class_policy_gives_each_image_its_class():
    policy = study_training.ClassPolicy(3, (2, 2))
    torch.nn.init.normal_(policy.log_concentration)
    policy.labels = torch.tensor([2, 0, 2])
    log_concentration1, log_concentration0 = policy(torch.zeros(3, 1, 8, 8))
    assert torch.equal(log_concentration1[:, 0], policy.log_concentration[[2, 0, 2], 0])
    assert torch.equal(log_concentration0[:, 0], policy.log_concentration[[2, 0, 2], 1])


def test_recalibrated_statistics_are_those_of_unmasked_images(data):
    """The last epoch's mean of the first layer, whatever the masks did before."""
    seen: list[torch.Tensor] = []
    statistics = study_training.update_bn

    def update(loader, model):
        images = [batch.clone() for batch in loader]
        seen.extend(images)
        statistics(images, model)
        first = model.network.conv1(torch.cat(images)).mean((0, 2, 3))
        torch.testing.assert_close(model.network.bn1.running_mean, first, rtol=1e-3, atol=1e-4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_training, "update_bn", update)
        study_training.train(Job(TASK, CONDITIONS["frozen-dose20-recalibrated"], 0, ("val",)), data)
    batches = study_training.Batches(data, 0, TASK.epochs)
    assert torch.equal(seen[-1], (batches[len(batches) - 1][0] - data.mean) / data.std)


def test_a_run_repeats_and_a_mask_of_no_strength_is_plain_training(data):
    def losses(condition: Condition) -> list[float]:
        return [point["loss"] for point in study_training.train(Job(TASK, condition, 3, ("val",)), data)["curve"]]

    plain, adversarial = losses(CONDITIONS["plain"]), losses(_small("adv"))
    assert adversarial == losses(_small("adv"))
    assert adversarial != plain
    assert losses(_small("adv", strength=0.0)) == pytest.approx(plain, rel=1e-4)


def _small(name: str, **mask: object) -> Condition:
    return dataclasses.replace(CONDITIONS[name], mask={"grid_size": 4, **mask})


def test_runs_are_appended_kept_and_failures_are_tried_again(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.jsonl"
    arguments = ["run", "--suite", "smoke", "--conditions", "plain", "--epochs", "1", "--device", "cpu"]
    arguments += ["--data", str(tmp_path), "--output", str(output)]
    job = jobs("smoke", conditions=("plain",), epochs=1)[0]
    output.write_text(json.dumps({"key": study.key_of(job), "error": "x"}) + "\n" + '{"key": cut off')
    todo: list[list[Job]] = []
    monkeypatch.setattr(study, "run_jobs", lambda jobs, *rest: todo.append(jobs) or 0)
    assert study.main(arguments) == 0
    output.write_text(json.dumps({"key": study.key_of(job)}) + "\n")
    study.main(arguments)
    assert [len(jobs) for jobs in todo] == [1, 0]
    assert "1 runs, 0 to do" in capsys.readouterr().out


def test_packed_results_are_read_as_they_were_but_for_digits(tmp_path):
    policy = [{"step": 1, "alpha": 1.0}, {"step": 2, "alpha": 1.23456789}]
    records = [{"key": "a", "scores": {"val": {"clean": 0.123456789}}, "policy": policy}, {"key": "b", "error": "x"}]
    source, packed = tmp_path / "results.jsonl", tmp_path / "results.jsonl.gz"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    study.main(["pack", str(source), "--output", str(packed)])
    first, second = study.read_results(packed)
    assert first == {"key": "a", "scores": {"val": {"clean": 0.12346}}, "policy": [{"step": 2, "alpha": 1.2346}]}
    assert second == records[1]


@pytest.mark.parametrize("option", ["task", "condition"])
def test_the_analysis_takes_what_is_chosen_alone(tmp_path, monkeypatch, option):
    source = tmp_path / "results.jsonl"
    records = [{"key": key, "task": "one", "condition": "plain", option: key} for key in "abc"]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    taken = []
    monkeypatch.setattr(
        "study_analysis.analyse",
        lambda records, *rest, against: taken.append(("".join(record["key"] for record in records), against)),
    )
    for chosen in ([], [f"--{option}s", "a,c"], ["--against", "b"]):
        study.main(["analyse", str(source), *chosen, "--output", str(tmp_path)])
    assert taken == [("abc", None), ("ac", None), ("abc", "b")]
    with pytest.raises(ValueError, match=rf"--{option}s must be of the results' {option}s, got \['d'\]"):
        study.main(["analyse", str(source), f"--{option}s", "a,d", "--output", str(tmp_path)])


def test_a_failed_run_is_a_record(tmp_path):
    record = study._run(jobs("smoke")[0], str(tmp_path), "no-such-device", False, float("inf"))
    assert record is not None
    assert "no-such-device" in record["error"]
    assert study._run(jobs("smoke")[0], str(tmp_path), "cpu", False, 0.0) is None
