"""The policy networks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from policy_noise.policy import BackbonePolicy, SpatialPolicy, StaticPolicy, create_policy


def shake(policy):
    """Give a policy weights that look at the image. It starts with zeros, which ignore it."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("size", [(28, 28), (33, 57), (224, 224), (8, 8), (5, 40)])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_spatial_takes_any_size_and_number_of_channels(in_chans, size):
    outputs = SpatialPolicy(in_chans, (8, 8))(torch.randn(2, in_chans, *size))
    assert [output.shape for output in outputs] == [(2, 1, 8, 8)] * 2


def test_spatial_takes_volumes():
    outputs = SpatialPolicy(1, (2, 3, 4))(torch.randn(2, 1, 9, 12, 16))
    assert [output.shape for output in outputs] == [(2, 1, 2, 3, 4)] * 2


def test_spatial_is_light():
    assert sum(parameter.numel() for parameter in SpatialPolicy(3, (8, 8)).parameters()) < 10_000


@pytest.mark.parametrize("start", [0.0, 0.7, -1.2])
def test_spatial_starts_where_it_is_told(start):
    outputs = SpatialPolicy(3, (4, 4), init_log_concentration=start)(torch.randn(2, 3, 32, 32))
    for output in outputs:
        torch.testing.assert_close(output, torch.full_like(output, start))


def test_spatial_can_learn_where_things_are():
    policy = SpatialPolicy(1, (4, 4))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)

    def draw(count):
        cell = torch.randint(16, (count,))
        images = torch.eye(16)[cell].view(count, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return images + 0.1 * torch.randn_like(images), cell

    for _ in range(60):
        images, cell = draw(64)
        loss = nn.functional.cross_entropy(policy(images)[0].flatten(1), cell)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, cell = draw(200)
    assert (policy(images)[0].flatten(1).argmax(1) == cell).float().mean() > 0.9


def test_spatial_is_bounded_and_never_stuck():
    policy = SpatialPolicy(3, (4, 4), max_log_concentration=2.0)
    with torch.no_grad():
        policy.place.fill_(4.0)
    output = policy(torch.randn(2, 3, 32, 32))[0]
    assert output.max() <= 2.0
    output.sum().backward()
    assert (policy.place.grad[:, 0] > 0).all()


def test_spatial_gives_every_parameter_a_gradient():
    policy = shake(SpatialPolicy(3, (4, 4)))
    first, second = policy(torch.randn(4, 3, 32, 32))
    (first.sum() + 2 * second.square().sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in policy.parameters())


def test_spatial_does_not_couple_samples():
    policy = shake(SpatialPolicy(3, (4, 4)))
    images = torch.randn(4, 3, 32, 32)
    together = policy(images)[0]
    alone = torch.cat([policy(image[None])[0] for image in images])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_bad_pixels_stay_in_their_sample(bad):
    policy = shake(SpatialPolicy(3, (4, 4)))
    images = torch.randn(4, 3, 32, 32)
    expected = policy(images)[0].detach()
    images[1, 0, 3, 5] = bad
    output = policy(images)[0]
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output[[0, 2, 3]], expected[[0, 2, 3]])
    output.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in policy.parameters())


def test_static_is_the_same_for_all_images():
    policy = StaticPolicy((3, 5), concentration1=2.0, concentration0=0.5)
    first, second = policy(torch.randn(4, 1, 32, 32))
    torch.testing.assert_close(first, torch.full((4, 1, 3, 5), math.log(2.0)))
    torch.testing.assert_close(second, torch.full((4, 1, 3, 5), math.log(0.5)))
    assert [parameter.shape for parameter in policy.parameters()] == [(2, 3, 5)]


@pytest.fixture(scope="module")
def paper_policy():
    torch.manual_seed(0)
    return BackbonePolicy("resnet10t", 3, (64, 64))


def test_the_papers_policy_has_the_papers_size(paper_policy):
    assert sum(parameter.numel() for parameter in paper_policy.parameters()) == 10_179_704
    assert {"base_concentration1", "base_concentration0"} <= dict(paper_policy.named_buffers()).keys()


def test_the_papers_heads(paper_policy):
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    for head in (paper_policy.head1, paper_policy.head0):
        assert [type(layer) for layer in head][:7] == kinds
        assert [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)] == [
            (512, 512),
            (512, 512),
            (512, 4096),
        ]


def test_the_papers_moving_average_base():
    """log alpha = 0.9 base + 0.1 head with the base from before; then base <- 0.99 base + 0.01 mean(head)."""
    policy = BackbonePolicy("test_resnet", 1, (4, 4))
    for base in (policy.base_concentration1, policy.base_concentration0):
        assert base.min() >= 0
        assert base.max() < 1
        assert base.std() > 0.1
    heads = {}
    policy.head1.register_forward_hook(lambda module, args, output: heads.__setitem__("1", output.detach()))
    policy.head0.register_forward_hook(lambda module, args, output: heads.__setitem__("0", output.detach()))
    for _ in range(2):
        before = policy.base_concentration1.clone(), policy.base_concentration0.clone()
        outputs = policy(torch.randn(4, 1, 32, 32))
        after = policy.base_concentration1, policy.base_concentration0
        for old, new, output, name in zip(before, after, outputs, "10", strict=True):
            torch.testing.assert_close(output, 0.9 * old + 0.1 * heads[name])
            torch.testing.assert_close(new, 0.99 * old + 0.01 * heads[name].mean(0, keepdim=True))


def test_the_papers_base_stays_in_eval_mode_and_travels_in_the_state_dict():
    policy = BackbonePolicy("test_resnet", 1, (4, 4)).eval()
    before = policy.base_concentration1.clone()
    policy(torch.randn(4, 1, 32, 32))
    assert torch.equal(policy.base_concentration1, before)
    other = BackbonePolicy("test_resnet", 1, (4, 4)).eval()
    other.load_state_dict(policy.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(other(images)[0], policy(images)[0])


def test_two_forwards_before_a_backward():
    """Gradient accumulation: base and batch statistics move between a forward and its backward."""
    policy = BackbonePolicy("test_resnet", 1, (4, 4))
    total = sum(policy(torch.randn(4, 1, 32, 32))[0].sum() for _ in range(2))
    total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in policy.head1.parameters())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002"])
def test_any_timm_backbone(name):
    outputs = create_policy(name, 1, (4, 6))(torch.randn(2, 1, 64, 64))
    assert [output.shape for output in outputs] == [(2, 1, 4, 6)] * 2


def test_backbone_survives_bad_pixels():
    policy = BackbonePolicy("test_resnet", 1, (4, 4))
    images = torch.randn(4, 1, 32, 32)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = math.nan, math.inf
    assert torch.isfinite(policy(images)[0]).all()
    assert torch.isfinite(policy.base_concentration1).all()


def test_create_policy_by_name():
    assert isinstance(create_policy("spatial", 3, (8, 8)), SpatialPolicy)
    assert isinstance(create_policy("static", 3, (8, 8)), StaticPolicy)
    policy = StaticPolicy((8, 8))
    assert create_policy(policy, 3, (8, 8)) is policy


@pytest.mark.parametrize(
    ("policy", "grid_size", "error", "message"),
    [
        ("resnet10000", (8, 8), ValueError, "policy must be .*'resnet10000'"),
        ("resnet10t", (8, 8, 8), ValueError, r"policy='resnet10t' needs a grid of two axes, got grid_size=\(8, 8, 8\)"),
        (3, (8, 8), TypeError, "policy must be a name or a torch.nn.Module, got int"),
        (SpatialPolicy, (8, 8), TypeError, "policy must be a name or a torch.nn.Module, got type"),
    ],
)
def test_create_policy_refuses(policy, grid_size, error, message):
    with pytest.raises(error, match=message):
        create_policy(policy, 3, grid_size)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (224, 96), (33, 64), (28, 28), (50, 37)])
def test_thumbnail_is_adaptive_pooling(size, layout):
    policy = SpatialPolicy(3, (4, 4))
    seen = []
    policy.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    policy(images)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool2d(images, (16, 16)))


def test_thumbnail_of_volumes_is_adaptive_pooling():
    policy = SpatialPolicy(1, (2, 2, 4))
    seen = []
    policy.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(2, 1, 16, 24, 32)
    policy(images)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool3d(images, (8, 8, 16)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thumbnail_of_half_precision_images_is_averaged_in_fp32(dtype):
    policy = SpatialPolicy(3, (4, 4))
    seen = []
    policy.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(2, 3, 64, 64).to(dtype)
    policy(images)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool2d(images.float(), (16, 16)))


def test_backbone_gives_the_same_channels_last():
    policy = BackbonePolicy("test_resnet", 3, (4, 4))
    twin = copy.deepcopy(policy)
    seen = []
    policy.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(4, 3, 128, 128)
    features = twin.backbone(images)
    for own, head, base in zip(
        policy(images), (twin.head1, twin.head0), (twin.base_concentration1, twin.base_concentration0), strict=True
    ):
        torch.testing.assert_close(own, 0.9 * base + 0.1 * head(features), rtol=1e-3, atol=1e-4)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
