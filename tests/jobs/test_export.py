"""job=export: programs that need torch alone predict as the learner does, and cutting silent units changes nothing."""

from __future__ import annotations

import builtins
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import metarun
from metarun.config.schema import Config
from metarun.errors import UserError
from metarun.jobs.export.pruning import cut_units, zero_small_weights
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.models.network import Network
from metarun.training import checkpoint
from metarun.training.experiment import build_dataset, build_learner
from metarun.types import Algorithm, Batch, Params

safetensors = pytest.importorskip("safetensors.torch")
EXACT = 1e-6
SINUSOID = ["model.hidden=[6,5]", "algo.inner_steps=2", "algo.test_inner_steps=3"]
WAYS, SHOTS = 3, 2


# ---------------------------------------------------------------- pruning


def silenced(params: Params, units: dict[int, list[int]], gain: bool = True) -> Params:
    """The same with these units of these blocks set to zero: their rows, shifts and gains."""
    params = {name: w.clone() for name, w in params.items()}
    for block, rows in units.items():
        for part in ("weight", "shift", *(["gain"] if gain else [])):
            if f"block{block}.{part}" in params:
                params[f"block{block}.{part}"][rows] = 0
    return params


def lively(model: Network | Algorithm) -> Params:
    """Weights in float64 with shifts that are not 0."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: w.double() + 0.1 * torch.randn(w.shape, generator=generator, dtype=torch.float64)
        for name, w in model.init(0).items()
    }


NETWORKS = {
    "mlp": lambda norm, outputs: mlp((16, 16), outputs, (6, 5), norm),
    "mean": lambda norm, outputs: conv4((1, 16, 16), outputs, 6, norm, "stride", "mean"),
    "flatten": lambda norm, outputs: conv4((1, 32, 32), outputs, 6, norm, "max", "flatten"),
}


@pytest.mark.parametrize("norm", ["batch", "joined", "support", "population", "none"])
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("outputs", [None, 4])
def test_a_network_without_its_silent_units_is_the_same_function(kind: str, norm: str, outputs: int | None) -> None:
    model = NETWORKS[kind](norm, outputs)
    params = silenced(lively(model), {0: [1, 3], 1: [0, 4]})
    found = cut_units(model, params)
    assert found.cut == {"block0": 2, "block1": 2}
    assert found.params["block1.weight"].shape[:2] == (len(params["block1.shift"]) - 2, 4)
    assert {k: tuple(w.shape) for k, w in found.model.init(0).items()} == shapes(found.params)
    side = 32 if kind == "flatten" else 16
    x = torch.randn(7, *([1] if kind != "mlp" else []), side, side, dtype=torch.float64)
    models = [m.calibrate(p, 2 * x) for m, p in ((model, params), (found.model, found.params))]
    expected, smaller = models[0].apply(params, x), models[1].apply(found.params, x)
    if kind == "mlp" and outputs is None:  # two of the five features are of units that were cut
        assert (expected[:, [0, 4]] == 0).all()
        expected = expected[:, [1, 2, 3]]
    assert (smaller - expected).abs().max() < 1e-12


def shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: tuple(w.shape) for name, w in params.items()}


@pytest.mark.parametrize("algo", ["maml", "imaml", "reptile"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_no_inner_step_revives_a_cut_unit(algo: str, norm: str) -> None:
    learner = learner_of(algo, [f"model.norm={norm}", *SINUSOID])
    model: Any = learner.model
    params = silenced(lively(model), {0: [1, 3], 1: [0]})
    found = cut_units(model, params)
    smaller = replace(learner, model=found.model)
    support, x = points(8), points(5).x
    adapted = [list(at.adaptations(p, support, 3)) for at, p in ((learner, params), (smaller, found.params))]
    for whole, part in zip(*adapted, strict=True):
        assert (learner.predict(whole, x) - smaller.predict(part, x)).abs().max() < 1e-12
    assert (adapted[0][-1].params["block0.weight"][[1, 3]] == 0).all()
    assert (adapted[0][-1].params["block0.weight"] != params["block0.weight"]).any()


def test_a_unit_with_a_gain_is_silent_without_its_weights_or_its_gain_but_not_with_its_shift() -> None:
    model = mlp((4,), 2, (6, 5), "batch")
    params = lively(model)
    silent = silenced(params, {0: [2]}, gain=False)
    silent["block0.gain"][4] = silent["block0.shift"][4] = 0
    assert cut_units(model, silent).cut == {"block0": 2}
    silent["block0.shift"][2] = 0.1
    assert cut_units(model, silent).cut == {"block0": 1}
    assert cut_units(mlp((4,), 2, (6, 5), "batch", (0,)), silent).cut == {}, "a linear block's units come back"


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_norms_over_several_units_keep_them(norm: str) -> None:
    model = mlp((4,), 2, (12, 12), norm)
    params = silenced(lively(model), {0: [1]})
    x = torch.randn(6, 4, dtype=torch.float64)
    others = [i for i in range(12) if i != 1]
    without = {k: (w[others] if k.startswith("block0") else w) for k, w in params.items()}
    without["block1.weight"] = params["block1.weight"][:, others]
    smaller = replace(model, shapes=((11, 4), (12, 11)))
    assert (smaller.apply(without, x) - model.apply(params, x)).abs().max() > 1e-3
    assert cut_units(model, params).cut == {}


def test_a_block_keeps_one_unit_at_least() -> None:
    model = mlp((4,), 2, (3, 3), "none")
    params = silenced(lively(model), {0: [0, 1, 2]})
    found = cut_units(model, params)
    assert found.cut == {"block0": 2}
    x = torch.randn(6, 4, dtype=torch.float64)
    assert (found.model.apply(found.params, x) - model.apply(params, x)).abs().max() < 1e-12


def test_what_else_reads_the_features_keeps_them_and_what_a_regularizer_owns_is_cut_alike() -> None:
    model = mlp((4,), None, (6, 5), "none")
    params = silenced(lively(model), {0: [2], 1: [1]})
    own = {"reg.kl.log_std.block0.weight": params["block0.weight"] + 7, "reg.kl.weight": torch.tensor(1.0)}
    found = cut_units(model, params | own | {"fce.forward.weight": torch.ones(20, 10)})
    assert found.cut == {"block0": 1}
    kept = found.params["reg.kl.log_std.block0.weight"]
    assert torch.equal(kept, found.params["block0.weight"] + 7)
    assert cut_units(model, params).cut == {"block0": 1, "block1": 1}


def test_a_threshold_takes_what_is_at_most_its_size_and_leaves_the_regularizers_own() -> None:
    params = {"block0.weight": torch.tensor([0.5, -0.1, 0.09]), "reg.l1.weight": torch.tensor(0.01)}
    found = zero_small_weights(params, 0.1)
    assert torch.equal(found["block0.weight"], torch.tensor([0.5, 0.0, 0.0]))
    assert found["reg.l1.weight"] == params["reg.l1.weight"]
    assert all(torch.equal(w, params[k]) for k, w in zero_small_weights(params, 0).items())


# ---------------------------------------------------------------- programs


def learner_of(algo: str, overrides: list[str]) -> Algorithm:
    config = metarun.compose([f"algo={algo}", *overrides])
    return build_learner(config, build_dataset(config), WAYS)


def points(count: int) -> Batch:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return Batch(x, x.sin())


class Pictures:
    """What a learner on images asks of its data set."""

    kind = "classification"

    def input_shape(self) -> tuple[int, ...]:
        return (1, 16, 16)

    def outputs(self, ways: int) -> int:
        return ways


def picture_learner(algo: str, model: str, norm: str, *more: str) -> Algorithm:
    overrides = [f"algo={algo}", f"model={model}", f"model.norm={norm}", *more]
    small = ["model.hidden=[6,5]"] if model == "mlp" else ["model.filters=4"]
    config = metarun.compose([*overrides, *small])
    learner = build_learner(config, Pictures(), WAYS)  # type: ignore[arg-type]
    return replace(learner, test_inner_steps=3) if hasattr(learner, "inner_steps") else learner


def assert_program_equals(learner: Any, params: Params, support: Batch, x: Tensor, kind: Any) -> None:
    """Saved, loaded, and asked for as many rows as it was made with, for fewer, and for more."""
    from metarun.jobs.export.program import Example, export_program

    file = io.BytesIO()
    torch.export.save(export_program(learner, params, Example(*support, x), kind), file)
    file.seek(0)
    program = torch.export.load(file).module()
    *_, adapted = learner.adaptations(params, support, learner.test_inner_steps)
    for queries in (x, x[:2], torch.cat([x, x + 1])):
        expected = learner.predict(adapted, queries)
        expected = expected.softmax(1) if kind == "classification" else expected
        assert (program(*support, queries) - expected).abs().max() < 1e-12
    *_, start = learner.adaptations(params, support, 0)
    if hasattr(learner, "inner_steps"):
        assert (learner.predict(start, x) - learner.predict(adapted, x)).abs().max() > 1e-3, "it adapts"


REGRESSION = {
    "maml": ["algo=maml"],
    "head only": ["algo=maml", "algo.adapted=[head]"],
    "reptile with mini-batches": ["algo=reptile", "algo.inner_batch=3"],
    "reptile with carried moments": ["algo=reptile", "algo.inner_optimizer=adam", "algo.moments=carried"],
    "inner prox": ["algo=maml", "reg=l1", "reg.where=inner", "reg.weight=0.01", "reg.method=prox"],
    "imaml": ["algo=imaml"],
}


@pytest.mark.parametrize("overrides", REGRESSION.values(), ids=list(REGRESSION))
def test_a_program_of_a_regression_learner_predicts_as_the_learner(overrides: list[str]) -> None:
    learner = learner_of(overrides[0].removeprefix("algo="), [*SINUSOID, *overrides[1:]])
    params = {name: w.double() for name, w in learner.init(0).items()}
    assert_program_equals(learner, params, points(8), points(5).x, "regression")


CLASSIFICATION = [
    ("protonet", "mlp", "population"),
    ("maml", "mlp", "support"),
    *[
        pytest.param(algo, model, norm, marks=pytest.mark.long)
        for algo, model, norm in [
            ("matchingnet", "mlp", "none"),
            ("reptile", "mlp", "population"),
            ("maml", "conv4", "batch"),
            ("maml", "conv4", "population"),
            ("maml", "conv4", "support"),
            ("maml", "conv4", "group"),
            ("imaml", "conv4", "batch"),
            ("imaml", "conv4", "layer"),
            ("reptile", "conv4", "batch"),
            ("protonet", "conv4", "batch"),
            ("protonet", "conv4", "none"),
            ("matchingnet", "conv4", "population"),
            ("matchingnet", "conv4", "group"),
        ]
    ],
]


@pytest.mark.parametrize(("algo", "model", "norm"), CLASSIFICATION)
def test_a_program_of_a_classification_learner_predicts_as_the_learner(algo: str, model: str, norm: str) -> None:
    learner: Any = picture_learner(algo, model, norm)
    if algo in ("maml", "imaml"):
        learner = replace(learner, inner_lr=0.02 if norm == "population" else 0.3)  # fixed statistics bound nothing
    params = lively(learner)  # float64: program and learner need not round alike
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(WAYS * SHOTS + 4, 1, 16, 16, generator=generator, dtype=torch.float64)
    learner = replace(learner, model=learner.model.calibrate(params, x))
    support = Batch(x[: WAYS * SHOTS], torch.arange(WAYS).repeat(SHOTS))
    assert_program_equals(learner, params, support, x[WAYS * SHOTS :], "classification")


def test_a_learner_that_cannot_be_traced_is_refused_in_one_line() -> None:
    from metarun.jobs.export.program import Example, export_program

    learner: Any = picture_learner("protonet", "mlp", "none")

    class Stubborn(type(learner)):  # type: ignore[misc]
        def predict(self, adapted: Any, x: Tensor) -> Tensor:
            return x.flatten(1) if float(x.sum()) > 0 else x.flatten(1) + 1

    stubborn = Stubborn(**{f: getattr(learner, f) for f in ("model", "loss", "ways", "distance", "temperature")})
    x = torch.rand(WAYS * SHOTS, 1, 16, 16)
    with pytest.raises(UserError, match=r"^job=export: torch.export cannot trace this learner \(.*\)$"):
        export_program(stubborn, learner.init(0), Example(x, torch.arange(WAYS).repeat(SHOTS), x), "classification")


def test_a_batch_for_each_query_is_refused_in_one_line() -> None:
    from metarun.jobs.export.program import Example, export_program

    learner, x = picture_learner("protonet", "mlp", "joined"), torch.rand(WAYS * SHOTS, 1, 16, 16)
    example = Example(x, torch.arange(WAYS).repeat(SHOTS), x)
    with pytest.raises(UserError, match=r"^job=export: model\.norm=joined makes a batch for each query"):
        export_program(learner, learner.init(0), example, "classification")


# ---------------------------------------------------------------- the job


TINY = [*SINUSOID, "train.steps=5", "train.tasks=2", "train.eval_every=5", "val.tasks=2", "test.tasks=2"]
TINY += ["test.steps=3", "device.compile=false", "report=false", "diagnostics=off", "data.test_queries=7"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MAML on sinusoids, its first block with one unit set to zero afterwards."""
    folder = tmp_path_factory.mktemp("run")
    metarun.run(metarun.compose(TINY), folder)
    for path in (folder / "checkpoints").glob("*.pt"):
        stored = torch.load(path, weights_only=True)
        stored["params"] = silenced(stored["params"], {0: [2]})
        stored["sha256"] = checkpoint.digest({k: v for k, v in stored.items() if k != "sha256"})
        torch.save(stored, path)
    return folder


def settings(run: Path | None, *more: str) -> Config:
    config = metarun.compose([*TINY, "export.tasks=3", "export.calls=2", *more])
    config.job, config.run = "export", str(run) if run else None
    return config


@pytest.fixture(scope="module")
def exported_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    metarun.run(settings(run), folder)
    return folder


def test_the_files_hold_the_cut_network_and_how_to_use_it(run: Path, exported_run: Path) -> None:
    tensors = safetensors.load_file(exported_run / "model.safetensors")
    described = json.loads((exported_run / "config.json").read_text())
    assert described["tensors"] == {name: list(w.shape) for name, w in tensors.items()}
    assert described["tensors"]["block0.weight"] == [5, 1]
    trained = torch.load(run / "checkpoints/best.pt", weights_only=True)["params"]
    assert torch.equal(tensors["block0.weight"], trained["block0.weight"][[0, 1, 3, 4, 5]])
    assert torch.equal(tensors["block1.weight"], trained["block1.weight"][:, [0, 1, 3, 4, 5]])
    assert described["inputs"]["query_x"]["shape"] == ["at least 1", 1]
    assert described["adaptation_steps"] == 3
    assert described["settings"]["algo"]["inner_lr"] == 0.01
    with safetensors.safe_open(exported_run / "model.safetensors", "pt") as file:
        assert {"algo", "metric", "run", "mean"} <= set(file.metadata())


def test_the_summary_compares_before_and_after(exported_run: Path) -> None:
    summary = json.loads((exported_run / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    assert summary["pruning"]["units_cut"] == {"block0": 1}
    assert summary["pruning"]["change"] < 1e-12
    assert before["mean"] == pytest.approx(after["mean"], rel=1e-5)
    assert before["episodes_sha256"] == after["episodes_sha256"]
    assert before["parameters"] - after["parameters"] == 1 + 1 + 5
    assert (before["zeros"] > after["zeros"], before["units"], after["units"]) == (True, 11, 10)
    assert after["weights_bytes"] == (exported_run / "model.safetensors").stat().st_size
    assert after["program_bytes"] == (exported_run / "predict.pt2").stat().st_size
    assert all(side["latency_ms"] > 0 for side in (before, after))


ALONE = """
import sys
sys.modules["metarun"] = None  # an import of it would fail
import torch
program = torch.export.load(sys.argv[1]).module()
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save([program(*inputs), program(*inputs[:2], inputs[2][:1])], sys.argv[3])
"""


def test_the_program_runs_where_there_is_no_metarun(run: Path, exported_run: Path, tmp_path: Path) -> None:
    """And predicts what the run's learner does with the checkpoint, the silent unit included."""
    config = settings(run)
    learner = build_learner(config, build_dataset(config), 1)
    params = torch.load(run / "checkpoints/best.pt", weights_only=True)["params"]
    support, query = (Batch(*(t.float() for t in points(n))) for n in (10, 4))
    torch.save([*support, query.x], tmp_path / "inputs.pt")
    command = [sys.executable, "-c", ALONE, *map(str, (exported_run / "predict.pt2", *paths(tmp_path)))]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": ""}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, adapted = learner.adaptations(params, support, 3)
    for found, x in zip(torch.load(tmp_path / "outputs.pt", weights_only=True), (query.x, query.x[:1]), strict=True):
        assert (found - learner.predict(adapted, x)).abs().max() < EXACT
    content = (exported_run / "predict.pt2").read_bytes()
    assert str(Path(metarun.__file__).parent).encode() not in content


def paths(folder: Path) -> tuple[Path, Path]:
    return folder / "inputs.pt", folder / "outputs.pt"


def test_a_threshold_prunes_more_and_the_summary_has_its_cost(run: Path, tmp_path: Path) -> None:
    result = metarun.run(settings(run, "export.threshold=0.3"), tmp_path)
    before, after = result.summary["before"], result.summary["after"]
    assert after["mean"] != before["mean"]
    kept = safetensors.load_file(tmp_path / "model.safetensors")
    assert all((w == 0).logical_or(w.abs() > 0.3).all() for w in kept.values())


def test_the_terminal_shows_before_and_after(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metarun.run(settings(run), tmp_path)
    shown = capsys.readouterr().out
    assert "mse on 3 test tasks" in shown
    assert "units cut: 1 of block0" in shown
    assert "predict.pt2" in shown


def test_mistakes_are_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^run=None: job=export needs a run's folder"):
        metarun.run(settings(None), tmp_path / "a")
    with pytest.raises(UserError, match=r"^export.threshold=-1.0: must be at least 0"):
        metarun.run(settings(run, "export.threshold=-1"), tmp_path / "a")
    with pytest.raises(UserError, match=r"no checkpoint to read: last\.pt is missing"):
        metarun.run(settings(tmp_path), tmp_path / "a")
    import_of = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return import_of(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"safetensors is not installed; pip install 'metarun\[export\]'"):
        metarun.run(settings(run), tmp_path / "a")
    assert not (tmp_path / "a").exists()
