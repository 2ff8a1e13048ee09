"""Tools for a model after training under masks."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import update_bn

import policy_noise
from policy_noise.heated import (
    average_checkpoints,
    load_heated,
    read_heated_metadata,
    save_heated,
)


def make_model(num_classes: int = 4) -> nn.Module:
    return timm.create_model("test_resnet", num_classes=num_classes, in_chans=1)


def test_torchs_update_bn_sees_no_masks():
    model = make_model()
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    images = [torch.rand(4, 1, 32, 32)] * 2
    with policy_noise.attach(model, optimizer, criterion, p=1.0):
        update_bn(images, model)
        hooked = {name: value.clone() for name, value in model.state_dict().items()}
    update_bn(images, model)
    assert all(torch.equal(value, hooked[name]) for name, value in model.state_dict().items())


class TestAverage:
    def test_mean_of_formats_and_wrappers(self, tmp_path):
        states = [{"w": torch.full((2,), float(i)), "steps": torch.tensor(i)} for i in (1, 2, 6)]
        torch.save(states[0], tmp_path / "plain.pt")
        wrapped = {f"_orig_mod.module.{name}": value for name, value in states[1].items()}
        torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pt")
        save_file(states[2], tmp_path / "last.safetensors")
        average = average_checkpoints([tmp_path / "plain.pt", tmp_path / "wrapped.pt", tmp_path / "last.safetensors"])
        assert average["w"].tolist() == [3.0, 3.0]
        assert average["w"].dtype == torch.float32
        assert average["steps"] == 6

    def test_half_precision_is_averaged_in_double(self, tmp_path):
        for i, value in enumerate((2048.0, 1.0, 1.0)):  # 2048 + 1 is 2048 in half precision
            torch.save({"w": torch.tensor([value], dtype=torch.float16)}, tmp_path / f"{i}.pt")
        average = average_checkpoints([tmp_path / f"{i}.pt" for i in range(3)])["w"]
        assert average.dtype == torch.float16
        assert average.item() == torch.tensor(2050 / 3, dtype=torch.float16).item()

    def test_bad_input(self, tmp_path):
        with pytest.raises(ValueError, match="paths"):
            average_checkpoints([])
        with pytest.raises(FileNotFoundError, match=r"none\.pt"):
            average_checkpoints([tmp_path / "none.pt"])
        torch.save({"w": torch.zeros(2)}, tmp_path / "a.pt")
        torch.save({"w": torch.zeros(3)}, tmp_path / "b.pt")
        with pytest.raises(ValueError, match=r"b\.pt holds another model"):
            average_checkpoints([tmp_path / "a.pt", tmp_path / "b.pt"])

    def test_code_is_never_unpickled(self, tmp_path):
        torch.save({"state_dict": make_model}, tmp_path / "code.pt")
        with pytest.raises(ValueError, match=r"(?s)code\.pt cannot be read.*weights_only"):
            average_checkpoints([tmp_path / "code.pt"])

    @pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
    def test_a_truncated_file_is_named(self, tmp_path, name):
        path = tmp_path / name
        torch.save({"w": torch.zeros(99)}, path) if path.suffix == ".pt" else save_file({"w": torch.zeros(99)}, path)
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            average_checkpoints([path])


class TestSaveAndLoad:
    def test_round_trip_with_metadata(self, tmp_path):
        model, other = make_model(), make_model()
        save_heated(model, tmp_path / "deep" / "heated.safetensors", {"data": "organs", "scores": [0.5]})
        metadata = load_heated(other, tmp_path / "deep" / "heated.safetensors")
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
        assert metadata["architecture"] == "test_resnet"
        assert metadata["num_classes"] == 4
        assert metadata["scores"] == [0.5]
        assert metadata["kept"] == []
        assert metadata["policy_noise"] == policy_noise.__version__

    def test_other_number_of_classes_keeps_the_fresh_head(self, tmp_path):
        model, other = make_model(4), make_model(7)
        head = other.fc.weight.clone()
        save_heated(model, tmp_path / "heated.safetensors")
        assert load_heated(other, tmp_path / "heated.safetensors")["kept"] == ["fc.weight", "fc.bias"]
        assert torch.equal(other.fc.weight, head)
        assert torch.equal(other.conv1[0].weight, model.conv1[0].weight)

    def test_other_classes_of_the_same_number_get_a_fresh_head_on_request(self, tmp_path):
        model, other = make_model(4), make_model(4)
        head = other.fc.weight.clone()
        save_heated(model, tmp_path / "heated.safetensors")
        assert load_heated(other, tmp_path / "heated.safetensors", fresh_classifier=True)["kept"] == [
            "fc.weight",
            "fc.bias",
        ]
        assert torch.equal(other.fc.weight, head)
        assert torch.equal(other.conv1[0].weight, model.conv1[0].weight)
        plain = nn.Sequential(nn.Linear(3, 4))
        save_heated(plain, tmp_path / "plain.safetensors")
        with pytest.raises(ValueError, match="fresh_classifier needs the name"):
            load_heated(plain, tmp_path / "plain.safetensors", fresh_classifier=True)

    def test_a_module_with_weights_beside_its_attribute_module_is_saved_whole(self, tmp_path):
        class Headed(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = nn.Linear(3, 3)
                self.head = nn.Linear(3, 2)

        model, other = Headed(), Headed()
        save_heated(model, tmp_path / "headed.safetensors")
        load_heated(other, tmp_path / "headed.safetensors")
        assert torch.equal(other.head.weight, model.head.weight)
        assert torch.equal(other.module.weight, model.module.weight)

    def test_wrappers_and_shared_tensors(self, tmp_path):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(3, 3)
                self.b = nn.Linear(3, 3)
                self.b.weight = self.a.weight

        tied, other = Tied(), Tied()
        save_heated(nn.DataParallel(tied), tmp_path / "tied.safetensors")
        load_heated(other, tmp_path / "tied.safetensors")
        assert torch.equal(other.b.weight, tied.a.weight)
        assert not any(name.startswith("module.") for name in load_file(tmp_path / "tied.safetensors"))

    def test_another_architecture_changes_nothing(self, tmp_path):
        save_heated(nn.Sequential(nn.Linear(3, 4)), tmp_path / "heated.safetensors")
        model = nn.Sequential(nn.Linear(3, 5))
        before = model[0].weight.clone()
        with pytest.raises(ValueError, match="another architecture"):
            load_heated(model, tmp_path / "heated.safetensors")
        assert torch.equal(model[0].weight, before)
        assert load_heated(model, tmp_path / "heated.safetensors", classifier="0")["kept"] == ["0.weight", "0.bias"]

    def test_a_failed_save_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "heated.safetensors"
        save_heated(make_model(), path, {"version": 1})
        with pytest.raises(TypeError, match="metadata"):
            save_heated(make_model(), path, {"version": object()})
        assert read_heated_metadata(path)["version"] == 1
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_bad_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_heated_metadata(tmp_path / "none.safetensors")
        (tmp_path / "text.safetensors").write_text(json.dumps({"no": "weights"}))
        with pytest.raises(ValueError, match="not a safetensors file"):
            read_heated_metadata(tmp_path / "text.safetensors")
        save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
        with pytest.raises(ValueError, match="no metadata"):
            read_heated_metadata(tmp_path / "foreign.safetensors")
