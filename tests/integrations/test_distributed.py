"""DDP and FSDP2 in two processes on the CPU (gloo)."""

import copy
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from tiny import SETTINGS, TinyNet, policy_vector, tiny_data
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import policy_noise
from policy_noise.learning import PolicyLearner

WORLD = 2
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "barrier", "broadcast_object_list", "all_gather_object")
LOSSES = torch.tensor([2.0, 0.5, 1.0, 3.0, 0.1, 1.5, 0.7, 2.5])


def batches(rank: int, steps: int, sizes=(4, 3)):
    images, targets = tiny_data().tensors
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        rows = torch.randint(32, (sizes[rank],), generator=generator)
        yield images[rows], targets[rows]


def start(rank, wrap, **settings):
    torch.manual_seed(10 + rank)  # as timm does; without a broadcast the ranks' policies would differ
    network, criterion = TinyNet(), nn.CrossEntropyLoss()
    model = wrap(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hook = policy_noise.attach(model, optimizer, criterion, **{**SETTINGS, **settings})
    return model, optimizer, criterion, hook


def count_collectives():
    """Count what the package itself sends. DDP's reducer and FSDP use other functions."""
    calls = []
    for name in COLLECTIVES:
        original = getattr(dist, name)

        def counted(*args, original=original, name=name, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        setattr(dist, name, counted)
    return calls


def train(rank, wrap, steps, sizes=(4, 3), **settings):
    model, optimizer, criterion, hook = start(rank, wrap, **settings)
    calls = count_collectives()
    policies, seen = [policy_vector(hook)], []
    for images, targets in batches(rank, steps, sizes):
        loss = criterion(model(images), targets)
        seen.append(hook._queue.scored[-1].sample.action)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        policies.append(policy_vector(hook))
    return {
        "policies": torch.stack(policies),
        "average": hook.learner._moving_average,
        "actions": seen[0],
        "calls": calls,
        "reward": hook.metrics["reward"],
        "steps": hook._draws.steps,
    }


def uneven(rank):
    return train(rank, DistributedDataParallel, 20)


def sharded(rank):
    return train(rank, fully_shard, 20)


def moving_average_baseline(rank):
    return train(rank, DistributedDataParallel, 20, sizes=(1, 1), baseline="moving_average")


def backbone_policy(rank):
    """A policy with BatchNorm and moving averages in buffers; the paper's objective scales the loss."""
    return train(rank, DistributedDataParallel, 3, preset="paper", policy="test_resnet", kernel_size=3, sigma=1.0)


class Shaded(torch.utils.data.Dataset):
    """A data set that masks its images."""

    shade = policy_noise.RandomShading(p=1.0, mean=0.0, std=1.0)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        images, targets = tiny_data().tensors
        return self.shade(images[index]), targets[index]


def traffic(rank):
    """Bytes that the package sends, collective by collective, in two steps."""
    result, original = {}, dist.all_reduce
    for preset in ("random", "learned"):
        sent = []

        def counted(tensor, *args, sent=sent, **kwargs):
            sent.append(tensor.numel() * tensor.element_size())
            return original(tensor, *args, **kwargs)

        torch.manual_seed(0)
        model, criterion = DistributedDataParallel(TinyNet()), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hook = policy_noise.attach(model, optimizer, criterion, preset=preset)
        dist.all_reduce = counted
        masked = []
        for images, targets in torch.utils.data.DataLoader(Shaded(), 4):
            masked.append(images)
            criterion(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        hook.remove()
        dist.all_reduce = original
        parameters = sum(parameter.numel() for parameter in hook.augmentation.parameters())
        result[preset] = {"sent": sent, "parameters": parameters, "images": torch.cat(masked)}
    return result


def rank_without_samples(rank):
    model, optimizer, criterion, hook = start(rank, DistributedDataParallel)
    calls = count_collectives()
    before = policy_vector(hook)
    for images, targets in batches(rank, 4):
        if rank:  # it takes part in DDP's reduction and in the step with an unmasked batch
            with hook.paused():
                criterion(model(images), targets).backward()
        else:
            criterion(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = policy_vector(hook)
    optimizer.step()  # without gradients: no rank has a sample, and the policy's momentum must not move it either
    return {"before": before, "policies": learned, "empty": policy_vector(hook), "calls": calls}


def accumulated(rank):
    """Microbatches under no_sync give the step of the whole batch."""

    def step(parts):
        torch.manual_seed(0)
        model = DistributedDataParallel(TinyNet().eval())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        mask = policy_noise.PolicyNoiseMask(**SETTINGS, p=1.0)
        hook = policy_noise.ReinforceHook(mask, optimizer, policy_optimizer="sgd", policy_lr=1.0)
        images, _ = next(batches(rank, 1, (4, 4)))
        sample = mask.sample(images, torch.Generator().manual_seed(rank))
        losses = LOSSES[rank * 4 : rank * 4 + 4]
        for index, part in enumerate(torch.arange(4).chunk(parts)):
            with model.no_sync() if index < parts - 1 else torch.enable_grad():
                picked = type(sample)(
                    **{
                        name: value[part] if isinstance(value, torch.Tensor) and value.ndim else value
                        for name, value in vars(sample).items()
                    }
                )
                model(mask(images[part], picked)).sum().backward()
                hook.learner.observe(picked, losses[part])
        optimizer.step()
        return policy_vector(hook)

    return {"policies": torch.stack([step(1), step(2), step(4)])}


def one_process_equals_two(rank):
    """The all-reduced gradient is that of one process with all samples."""
    mask = policy_noise.PolicyNoiseMask(**SETTINGS, p=1.0)
    generator = torch.Generator().manual_seed(5)
    for parameter in mask.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    images = tiny_data().tensors[0][:8]
    sample = mask.sample(images, torch.Generator().manual_seed(1))
    losses = LOSSES.clone()
    losses[6] = torch.nan

    def step(rows, **settings):
        twin = policy_noise.PolicyNoiseMask(**SETTINGS, p=1.0)
        twin.load_state_dict(mask.state_dict())
        learner = PolicyLearner(twin, policy_optimizer="sgd", policy_lr=1.0, **settings)
        for _ in range(2):  # the second with a moving average
            drawn = twin.sample(images[rows], torch.Generator().manual_seed(3))
            action = sample.action[rows]
            log_prob = policy_noise.functional.beta_log_prob(action, drawn.concentration1, drawn.concentration0)
            replayed = type(drawn)(**{**vars(drawn), "action": action, "log_prob": log_prob.flatten(1).sum(1)})
            learner.observe(replayed, losses[rows])
            learner.step({"lr": 0.1})
        return nn.utils.parameters_to_vector(twin.parameters()).detach()

    result = {}
    kinds = [{"baseline": name} for name in ("leave_one_out", "batch", "moving_average", "none")]
    kinds += [{"normalize_advantage": False}, {"reward": "adversarial"}, {"entropy_coef": 0.1}]
    for index, kind in enumerate(kinds):
        two = step(torch.arange(5) if rank else torch.arange(5, 8), **kind)
        with mock.patch.object(policy_noise.learning.learner, "is_distributed", return_value=False):
            one = step(torch.cat([torch.arange(5, 8), torch.arange(5)]), **kind)
        result[f"{index}"] = torch.stack([one, two])
    return {"pairs": result}


def resume(rank):
    """Any rank's checkpoint resumes all ranks, with the masks that they would have drawn."""
    model, optimizer, criterion, hook = start(rank, DistributedDataParallel)
    data = list(batches(rank, 6))

    def epoch(part, model, optimizer, criterion):
        for images, targets in part:
            criterion(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    epoch(data[:3], model, optimizer, criterion)
    content = [copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})]
    dist.broadcast_object_list(content)  # the first rank's
    epoch(data[3:], model, optimizer, criterion)
    resumed, other_optimizer, criterion, other = start(rank, DistributedDataParallel)
    resumed.load_state_dict(content[0]["model"])
    other_optimizer.load_state_dict(content[0]["optimizer"])
    epoch(data[3:], resumed, other_optimizer, criterion)
    return {"whole": policy_vector(hook), "policies": policy_vector(other), "net": resumed.module.head.weight.detach()}


def gathered_state(rank):
    """FSDP builds the gathered optimizer state by its own step, and drops entries that it does not know."""
    model, optimizer, criterion, hook = start(rank, fully_shard, state_in_optimizer=False)
    before = policy_vector(hook)
    state = get_optimizer_state_dict(model, optimizer)
    after = policy_vector(hook)
    for images, targets in batches(rank, 2):
        criterion(model(images), targets).backward()
        optimizer.step()
    saved = hook.state_dict()
    other = start(rank, fully_shard, state_in_optimizer=False)[3]
    other.load_state_dict(saved)
    return {
        "before": before,
        "after": after,
        "keys": sorted(state),
        "learned": policy_vector(hook),
        "policies": policy_vector(other),
    }


RUNS = {
    function.__name__: function
    for function in (
        uneven,
        sharded,
        moving_average_baseline,
        backbone_policy,
        rank_without_samples,
        traffic,
        accumulated,
        one_process_equals_two,
        resume,
        gathered_state,
    )
}


def _worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{folder}/rendezvous")
    originals = {name: getattr(dist, name) for name in COLLECTIVES}
    for name, run in RUNS.items():
        try:
            result = run(rank)
        except Exception:
            result = traceback.format_exc()
        for collective, original in originals.items():
            setattr(dist, collective, original)
        torch.save(result, Path(folder) / f"{name}{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of both ranks by name. All runs share one pair of processes, because starting them is slow."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(_worker, str(folder))

    def of(name):
        both = [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(WORLD)]
        for result in both:
            assert not isinstance(result, str), result
        return both

    return of


@pytest.mark.parametrize("name", ["uneven", "sharded"])
def test_policies_stay_bit_equal(name, results):
    first, second = results(name)
    assert torch.equal(first["policies"], second["policies"])  # after each of 20 steps, and before the first
    assert not torch.equal(first["policies"][0], first["policies"][-1])
    assert first["policies"].isfinite().all()
    assert torch.equal(first["average"], second["average"])
    assert first["reward"] == second["reward"]
    assert not torch.equal(first["actions"][:3], second["actions"])  # different masks
    assert first["calls"] == second["calls"] == ["all_reduce"] * 40  # two a step: moments and gradient


@pytest.mark.parametrize("name", ["moving_average_baseline", "backbone_policy"])
def test_other_policies_and_baselines_stay_equal(name, results):
    first, second = results(name)
    assert torch.equal(first["policies"], second["policies"])
    assert not torch.equal(first["policies"][0], first["policies"][-1])
    assert torch.equal(first["average"], second["average"])


def test_rank_without_samples(results):
    first, second = results("rank_without_samples")
    assert torch.equal(first["policies"], second["policies"])
    assert not torch.equal(first["before"], first["policies"])
    assert torch.equal(first["policies"], first["empty"])
    assert torch.equal(second["policies"], second["empty"])
    assert first["calls"] == second["calls"] == ["all_reduce"] * 9  # where no rank has a sample, the moments only


def test_what_a_step_sends(results):
    """The figures of docs/performance.md: random masks send nothing, learned ones six numbers and the gradient."""
    for both in zip(results("traffic")[0].items(), results("traffic")[1].items(), strict=True):
        for preset, found in both:
            sent = [6 * 4, found["parameters"] * 4] * 2 if preset == "learned" else []
            assert found["sent"] == sent
            assert not torch.equal(found["images"], tiny_data().tensors[0][:8])
        if preset == "learned":
            assert found["parameters"] == 5498


def test_no_sync_accumulation_is_the_whole_batch(results):
    first, second = results("accumulated")
    assert torch.equal(first["policies"], second["policies"])
    whole, halves, quarters = first["policies"]
    torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, quarters, rtol=1e-4, atol=1e-5)


def test_two_processes_take_the_step_of_one(results):
    for result in results("one_process_equals_two"):
        for one, two in result["pairs"].values():
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_first_ranks_checkpoint_resumes_all(results):
    first, second = results("resume")
    assert torch.equal(first["whole"], first["policies"])
    assert torch.equal(first["policies"], second["policies"])
    assert torch.equal(first["net"], second["net"])


def test_state_beside_a_gathering_strategy(results):
    for result in results("gathered_state"):
        assert torch.equal(result["before"], result["after"])
        assert "policy_noise" not in result["keys"]
        assert not torch.equal(result["before"], result["learned"])
        assert torch.equal(result["learned"], result["policies"])


def test_no_collective_in_a_world_of_one(tmp_path, monkeypatch):
    calls = []
    for name in ("all_reduce", "broadcast_object_list", "broadcast", "barrier"):
        monkeypatch.setattr(dist, name, lambda *args, name=name, **kwargs: calls.append(name))
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/rendezvous")
    try:
        model, optimizer, criterion, hook = start(0, lambda network: network)
        for images, targets in batches(0, 3):
            criterion(model(images), targets).backward()
            optimizer.step()
        assert hook._draws.steps == 3
        assert calls == []
    finally:
        dist.destroy_process_group()


def test_process_group_after_the_hook_says_what_to_do(tmp_path, monkeypatch):
    model, _, criterion, _ = start(0, lambda network: network)
    monkeypatch.setattr(policy_noise.hooks._draws, "is_distributed", lambda: True)
    images, targets = next(batches(0, 1))
    with pytest.raises(RuntimeError, match="init_process_group"):
        criterion(model(images), targets)
