"""A whole training on sinusoids beside a JAX program whose loop is one `lax.scan`.

    python -m benchmarks.whole_loop                         # MAML, 1 and 5 inner steps, 20 000 outer steps
    python -m benchmarks.whole_loop --steps 5000 --threads 1

metarun runs as `metarun algo=maml data=sinusoid`, with its records, alarms and checkpoints, and without validation. The
JAX program draws the tasks, differentiates through the inner steps and makes the steps of optax's Adam inside one
compiled `scan`, and records nothing but the loss of each step. Both are compiled before the clock starts: metarun's
time is that between its records of a tenth of the steps and of the last one, JAX's that of as many steps after one scan
of the same length. Both have the same first weights, sizes, rates and distribution of tasks, other random numbers, and
should reach similar losses. They take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

HIDDEN, TASKS, POINTS, INNER_LR, OUTER_LR = 40, 25, 10, 0.01, 0.001


def run_metarun(inner_steps: int, steps: int, threads: int) -> tuple[float, float]:
    """Seconds a step, and the mean loss of the records of the last twentieth of the steps."""
    import metarun

    overrides = ["algo=maml", "data=sinusoid", f"algo.inner_steps={inner_steps}", f"train.steps={steps}"]
    overrides += [f"device.threads={threads}", "device.compile=on", f"train.eval_every={steps}", "val.tasks=1"]
    overrides += [f"train.checkpoint_every={steps // 10}", "test.tasks=1", "report=false", f"optim.lr={OUTER_LR}"]
    overrides += [f"algo.inner_lr={INNER_LR}", f"model.hidden=[{HIDDEN},{HIDDEN}]", f"train.tasks={TASKS}"]
    with tempfile.TemporaryDirectory() as folder:
        metarun.run(metarun.compose(overrides), Path(folder) / "run")
        records = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
        times = [json.loads(line) for line in (Path(folder) / "run/timing.jsonl").read_text().splitlines()]
    seconds = {r["step"]: r["seconds"] for r in times if r["kind"] == "train"}
    first, last = min(s for s in seconds if s >= steps // 10), max(seconds)
    losses = [r["loss"] for r in records if r["kind"] == "train" and r["step"] > 0.95 * steps]
    return (seconds[last] - seconds[first]) / (last - first), statistics.mean(losses)


def run_jax(inner_steps: int, steps: int, threads: int) -> tuple[float, float]:
    """Seconds a step of the second scan, and the mean loss of the last twentieth of the first."""
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax
    import jax.numpy as jnp
    import optax

    from metarun.models.mlp import mlp

    jax.config.update("jax_platforms", "cpu")
    optimizer = optax.adam(OUTER_LR)

    def loss_of(theta: list[tuple[jax.Array, jax.Array]], x: jax.Array, y: jax.Array) -> jax.Array:
        for w, b in theta[:-1]:
            x = jax.nn.relu(x @ w.T + b)
        w, b = theta[-1]
        return jnp.square(x @ w.T + b - y).mean()

    def query_loss(theta: list[tuple[jax.Array, jax.Array]], key: jax.Array) -> jax.Array:
        of_task, of_x = jax.random.split(key)
        amplitude, phase = jax.random.uniform(of_task, (2,)) * jnp.array([4.9, jnp.pi]) + jnp.array([0.1, 0.0])
        x = jax.random.uniform(of_x, (2, POINTS, 1), minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x - phase)
        fast = theta
        for _ in range(inner_steps):
            fast = jax.tree.map(lambda w, g: w - INNER_LR * g, fast, jax.grad(loss_of)(fast, x[0], y[0]))
        return loss_of(fast, x[1], y[1])

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        theta, state = carry
        keys = jax.random.split(key, TASKS)
        loss, slope = jax.value_and_grad(lambda t: jax.vmap(query_loss, (None, 0))(t, keys).mean())(theta)
        moves, state = optimizer.update(slope, state, theta)
        return (optax.apply_updates(theta, moves), state), loss

    train = jax.jit(lambda carry, key: jax.lax.scan(step, carry, jax.random.split(key, steps)))
    weights = {name: jnp.asarray(w.numpy()) for name, w in mlp((1,), 1, (HIDDEN, HIDDEN), "none").init(0).items()}
    layers = ("block0.weight", "block0.shift"), ("block1.weight", "block1.shift"), ("head.weight", "head.bias")
    theta = [(weights[w], weights[b]) for w, b in layers]
    carry, losses = jax.block_until_ready(train((theta, optimizer.init(theta)), jax.random.key(1)))
    began = time.perf_counter()
    jax.block_until_ready(train(carry, jax.random.key(2)))
    return (time.perf_counter() - began) / steps, float(losses[-steps // 20 :].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    for needed in ("jax", "optax"):
        if importlib.util.find_spec(needed) is None:
            parser.error(f"{needed} is not installed (extra bench)")
    print("| inner steps | metarun, ms a step | JAX scan, ms a step | JAX / metarun | losses |\n|---|---|---|---|---|")
    for inner_steps in (1, 5):
        rounds = []
        for _ in range(asked.rounds):
            found = []
            for side in (run_metarun, run_jax):
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    found.append(process.apply(side, (inner_steps, asked.steps, asked.threads)))
            rounds.append(found)
        ours, theirs = ([1e3 * r[side][0] for r in rounds] for side in (0, 1))
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        losses = " and ".join(f"{statistics.mean(r[side][1] for r in rounds):.3f}" for side in (0, 1))
        spread = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        times = f"{statistics.median(ours):.3f} | {statistics.median(theirs):.3f}"
        print(f"| {inner_steps} | {times} | {spread} | {losses} |", flush=True)


if __name__ == "__main__":
    main()
