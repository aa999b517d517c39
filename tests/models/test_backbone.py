"""Networks with trained weights: what is read, what is trained, and features that are computed once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import metarun
from metarun.data.files import file_checksum
from metarun.data.torchvision import load_torchvision
from metarun.errors import SettingError, UserError
from metarun.models.backbone import Backbone, backbone
from metarun.models.module import ModuleNetwork
from metarun.models.weights import last_part, load_body, read_state, remove_chance
from metarun.storage.cache_entries import list_entries
from metarun.storage.run_folder import cache_folder

SIDE = 32
SETTINGS = {"train": "frozen", "adapter": 4, "image_size": None, "norm": "running", "weights_sha256": None}


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = load_torchvision().models.resnet18()
    for part in made.modules():  # statistics as of a training
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 2)
    return made.eval()


@pytest.fixture(scope="module")
def file(resnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    return path


def make(file: Path, outputs: int | None = 3, **changes: object) -> ModuleNetwork:
    settings = SETTINGS | {"name": "resnet18", "weights": str(file)} | changes
    return backbone((3, SIDE, SIDE), outputs, **settings)  # type: ignore[arg-type]


def test_features_are_those_of_torchvisions_network_in_evaluation(resnet: nn.Module, file: Path) -> None:
    """With the mean and deviation of ImageNet, before the last layer."""
    x = torch.rand(2, 3, SIDE, SIDE)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    seen: list[torch.Tensor] = []
    hook = resnet.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        resnet((x - mean) / std)
        hook.remove()
        network = make(file)
        features = network.fixed_part.apply(x)
        torch.testing.assert_close(features, seen[0])
        params = network.init(0)
        rest = network.fixed_part.rest
        assert all(torch.equal(w, params[name]) for name, w in rest.init(0).items())
        whole, of_features = network.apply(params, x), rest.apply(params, features)
    torch.testing.assert_close(whole, of_features)
    torch.testing.assert_close(whole, features @ params["head.weight"].T + params["head.bias"])  # the adapter is 0


def test_images_are_resized_and_grey_ones_have_three_equal_channels(file: Path) -> None:
    x = torch.rand(1, 1, SIDE, SIDE)
    large = nn.functional.interpolate(x, (48, 48), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    found, same = make(file, image_size=48).fixed_part.apply(x), make(file).fixed_part.apply(large)
    torch.testing.assert_close(found, same)


@pytest.mark.parametrize(
    ("train", "trained", "fixed"), [("frozen", "head.weight", "body.conv1.weight"), ("full", "body.conv1.weight", None),
                                    ("last", "body.layer4.1.conv1.weight", "body.layer4.0.conv1.weight")],
)  # fmt: skip
def test_what_is_trained(file: Path, train: str, trained: str, fixed: str | None) -> None:
    network = make(file, train=train)
    assert trained in network.init(0)
    assert fixed is None or (fixed not in network.init(0) and fixed in network.constants)
    assert (network.fixed_part is None) == (train != "frozen")
    for name, weight in network.init(1).items():
        if name.startswith("body."):
            assert torch.equal(weight, read_state(file)[name.removeprefix("body.")])


def test_the_last_part_begins_with_the_last_block_of_a_transformer_too() -> None:
    sizes = {"image_size": 8, "patch_size": 4, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    body = load_torchvision().models.VisionTransformer(num_layers=4, **sizes)
    body.heads = nn.Identity()
    names = last_part(body)
    assert names[0].startswith("encoder.layers.encoder_layer_3.")
    assert names[-1] == "encoder.ln.bias"


def test_dropout_and_stochastic_depth_are_left_out() -> None:
    net = nn.Sequential(nn.Dropout(0.5), load_torchvision().ops.StochasticDepth(0.9, "row"), nn.Linear(2, 2))
    remove_chance(net)
    x = torch.rand(5, 2)
    assert torch.equal(net.train()(x), net[2](x))


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        ({"name": "resnet81"}, "name", "no such network, did you mean resnet18"),
        ({"weights": "NEWEST"}, "weights", "resnet18 has DEFAULT, IMAGENET1K_V1, none"),
        ({"weights": "/nowhere.pth"}, "weights", "there is no such file"),
        ({"train": "half"}, "train", "choices: frozen, last, full"),
        ({"outputs": None, "adapter": 0}, "adapter", "nothing would be trained"),
        ({"weights_sha256": "ab" * 32}, "weights", "are not those of the run"),
        ({"name": "timm:resnet18"}, "name", "pip install timm"),
        ({"image_size": 0}, "image_size", "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    file: Path, settings: dict[str, object], key: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed
    with pytest.raises(SettingError, match=says) as refused:
        make(file, **settings)  # type: ignore[arg-type]
    assert refused.value.key == key
    assert "\n" not in str(refused.value)


def test_files_of_another_network_and_of_no_tensors_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"lacks layer1\.2\.conv1\.weight.* of resnet34"):
        make(file, name="resnet34")
    with pytest.raises(SettingError, match=r"is of another network than wide_resnet50_2|lacks"):
        make(file, name="wide_resnet50_2")
    other = tmp_path / "text.pth"
    other.write_text("no tensors")
    with pytest.raises(SettingError, match="holds no tensors"):
        make(other)
    torch.save({"epoch": 3}, other)
    with pytest.raises(SettingError, match="holds no state dict"):
        make(other)


def test_checkpoints_of_a_training_are_unwrapped(resnet: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "training.pth"
    state = {f"module.{k}": v for k, v in resnet.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    assert torch.equal(read_state(path)["conv1.weight"], resnet.conv1.weight)


def test_the_adapter_learns(file: Path) -> None:
    body = load_body("resnet18", str(file)).body
    module = Backbone(body, load_body("resnet18", str(file)).preprocessing, 512, 4, None)
    features = torch.rand(3, 512)
    assert torch.equal(module(features), features)
    module(features).square().sum().backward()
    assert module.adapter is not None
    assert module.adapter[2].weight.grad is not None


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("algo", ["protonet", "maml"])
def test_features_are_computed_once_and_give_what_images_give(
    algo: str, file: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["data=folder", f"data.root={root}", f"algo={algo}", "model=backbone", f"model.weights={file}"]
    settings += ["data.ways=2", "data.image_size=32", "data.queries=2", "data.test_queries=2", "train.steps=3"]
    settings += ["train.tasks=2", "val.tasks=2", "test.tasks=4", "report=false", "device.threads=1", "model.adapter=8"]
    calls: list[int] = []
    embed = Backbone.embed

    def counted(module: Backbone, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return embed(module, x)

    monkeypatch.setattr(Backbone, "embed", counted)
    with pytest.raises(UserError, match=r"data.normalize=centred: must be none: the network standardises its images"):
        metarun.run(metarun.compose([*settings, "data.normalize=centred"]), tmp_path / "scaled")
    monkeypatch.chdir(file.parent)
    assert metarun.compose(["model=backbone", "model.weights=resnet18.pth"]).model["weights"] == str(file)
    first = metarun.run(metarun.compose(settings), tmp_path / "first")
    computed = sum(n for n in calls if n > 2)
    again = metarun.run(metarun.compose([*settings, "seed=0"]), tmp_path / "again")
    assert sum(n for n in calls if n > 2) == computed
    (listed,) = (entry for entry in list_entries(cache_folder())[0] if entry.kind == "features")
    (images,) = (entry for entry in list_entries(cache_folder())[0] if entry.kind == "images")
    assert listed.source == f"resnet18 on {images.name}"
    assert listed.checksum == f"sha256:{file_checksum(listed.paths[1], 'sha256')}"
    assert images.source.startswith(f"{root}, ")
    assert first.summary["params_sha256"] == again.summary["params_sha256"]
    monkeypatch.setattr("metarun.training.experiment.embed_images", lambda data, learners, placement: (data, learners))
    whole = metarun.run(metarun.compose(settings), tmp_path / "whole")
    assert whole.summary["episodes_sha256"] == first.summary["episodes_sha256"]
    assert whole.summary["mean"] == pytest.approx(first.summary["mean"], abs=1e-6)
    run = metarun.load(tmp_path / "first")
    assert run.evaluate(folder=tmp_path / "tested").summary["mean"] == first.summary["mean"]
    images = torch.rand(4, 3, 32, 32)
    assert run.adapt(images, [0, 1, 0, 1]).predict(images).shape == (4,)
