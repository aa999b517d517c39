"""Every algorithm with a module of the user's own, from the command line too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import ROOT
from helpers.commands import metarun as command
from torch.func import vmap

import metarun
from metarun.compute.device import Placement
from metarun.config import catalogue
from metarun.config.components import component_class, locate
from metarun.data.point_robot import PointRobot
from metarun.data.sinusoid import Sinusoid
from metarun.errors import UserError
from metarun.testing.episodes import SPECS, Blobs
from metarun.training.experiment import assemble, build_learner
from metarun.types import Batch, Dataset, Params, StatefulLearner, Task

MODULE = ("model=module", "model.target=helpers.modules.Plain", "trusted_modules=[helpers]", "recipe=absent")
DATASETS: dict[str, Dataset] = {
    "regression": Sinusoid(amplitude=(0.1, 5.0), phase=(0.0, np.pi), x_range=(-5.0, 5.0), noise=0.0),
    "classification": Blobs(side=4, informative=4),
    "control": PointRobot(reward="dense", horizon=4, train_goals=5, val_goals=3, test_goals=3),
}
TINY = ("train.steps=4", "train.tasks=3", "train.eval_every=2", "val.tasks=3", "test.tasks=4", "report=false")


@pytest.mark.parametrize("algo", catalogue.list_options("algo"))
def test_every_algorithm_learns_with_an_own_module(algo: str) -> None:
    """vmap over tasks is a loop, every tensor has a gradient's shape, predictions are finite."""
    config = metarun.compose([f"algo={algo}", *MODULE])
    kind = component_class(locate("algo", config.algo)).kinds[0]
    dataset, spec = DATASETS[kind], SPECS[kind]
    learner = build_learner(config, dataset, spec.ways)
    placement = Placement(torch.device("cpu"), torch.float64, None, False)
    tasks, params = dataset.episodes("train", 0, 0, range(2), spec), learner.init(0)
    if isinstance(learner, StatefulLearner):
        _, params, tasks = learner.before_step(params, learner.init_state(params), tasks, 0, 0)
    params, tasks = placement.move_params(params), placement.move_task(tasks)
    assert [name for name in params if "body.1.weight" in name]
    batched, metrics = vmap(learner.meta_grad, in_dims=(None, 0))(params, tasks)
    assert {k: v.shape[1:] for k, v in batched.items()} == {k: v.shape for k, v in params.items()}
    for i in range(2):
        task = Task(*(Batch(b.x[i], b.y[i]) for b in tasks))
        expected, expected_metrics = learner.meta_grad(params, task)
        assert_near({k: v[i] for k, v in batched.items()}, expected)
        assert_near({k: v[i] for k, v in metrics.items()}, expected_metrics)
        predicted = learner.predict(learner.adapt(params, task.support), task.query.x)
        assert predicted.isfinite().all()


def assert_near(found: Params, expected: Params) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


def test_a_command_trains_a_module_and_tests_it_again(tmp_path: Path) -> None:
    """Without trust, the run's folder must not name the code to run."""
    code = (ROOT / "tests/helpers/modules.py").read_text(encoding="utf-8")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/nets.py").write_text(code, encoding="utf-8")
    typed = ("model=module", "model.target=own.nets.Residual", "model.args.ways=1", "model.args.width=5", *TINY)
    folder = "hydra.run.dir=trained"
    done = command(*typed, "trusted_modules=[own]", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "trained/config.yaml").read_text(encoding="utf-8")
    assert "target: own.nets.Residual" in settings
    assert "width: 5" in settings
    untrusted = command("job=evaluate", "run=trained", cwd=tmp_path)
    assert untrusted.returncode == 2
    assert "model.target=own.nets.Residual: add its package to trusted_modules" in untrusted.stderr
    again = command("job=evaluate", "run=trained", "trusted_modules=[own]", "hydra.run.dir=tested", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (line(done.stdout), line(again.stdout))
    assert first == second
    unknown = command("model=module", "model.target=own.nets.Residual", "trusted_modules=[own]", cwd=tmp_path)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("metarun: model.head=classifier: Residual puts out [3]")


def line(output: str) -> list[str]:
    """The table of the adaptation steps."""
    return [text for text in output.splitlines() if text.strip()[:1].isdigit()]


def test_dropout_gives_the_same_bits_in_chunks(tmp_path: Path) -> None:
    """And another run than without it."""
    dropping = ("model.target=helpers.modules.Residual", "model.args.ways=1", "model.args.p=0.4", "diagnostics=off")
    results = [
        metarun.run(metarun.compose([*MODULE, *TINY, *dropping, *more]), tmp_path / str(i)).params
        for i, more in enumerate(([], [], ["model.args.p=0"], ["device.chunk_size=1", "device.precision=float64"]))
    ]
    first, again, without, _ = (torch.cat([p.flatten() for p in params.values()]) for params in results)
    assert torch.equal(first, again)
    assert not torch.equal(first, without)
    whole = metarun.run(metarun.compose([*MODULE, *TINY, *dropping, "device.precision=float64"]), tmp_path / "whole")
    assert_near(results[-1], whole.params)


def test_learners_of_several_networks_refuse_dropout() -> None:
    config = metarun.compose(["algo=cnp", *MODULE, "model.target=helpers.modules.Dropping"])
    with pytest.raises(UserError, match="algo=cnp: is made of several networks, which have no dropout"):
        assemble(config)


def test_a_module_of_python_trains_and_starts_from_its_weights(tmp_path: Path) -> None:
    from helpers.modules import Residual

    net = Residual((1,), ways=1)
    result = metarun.run(metarun.compose([*TINY, "train.steps=1", "optim.lr=1e-30"]), tmp_path / "run", model=net)
    assert result.status == "completed"
    torch.testing.assert_close(result.params["head.weight"], net.classifier.weight.detach())
    with pytest.raises(UserError, match=r"^algo.adapted=.*choices: enter.1, enter.2, block.0, block.1, block.4, head"):
        metarun.run(metarun.compose([*TINY, "algo=anil", "algo.adapted=[hat]"]), tmp_path / "refused", model=net)


def test_recurrent_modules_are_compiled_only_if_asked() -> None:
    """Their graph grows with the length of the sequence."""
    chosen = [*MODULE, "algo=maml", "train.steps=70000"]
    for target, compiled in (("Sequence", False), ("Plain", "auto")):
        placement = assemble(metarun.compose([*chosen, f"model.target=helpers.modules.{target}"])).placement
        assert placement.compile == compiled
    asked = metarun.compose([*chosen, "model.target=helpers.modules.Sequence", "device.compile=on"])
    assert assemble(asked).placement.compile is True
