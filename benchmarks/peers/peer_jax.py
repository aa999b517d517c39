"""JAX with optax: second-order MAML, the whole outer step in one `jit`.

Forms, of which `FASTEST` is timed (`python -m benchmarks.peers --forms` times all; figures: benchmarks/README.md):

    vmap      the task axis by vmap; convolutions become grouped ones
    map       lax.map over tasks, each differentiated inside: plain convolutions
    unrolled  the tasks one after the other in one program
    patches   vmap, with each convolution written as patches times a matrix

Images are NHWC and filters HWIO, which is what XLA's CPU backend runs fastest. Inner steps are unrolled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.tasks import Side, Work

FORMS = ("vmap", "map", "unrolled", "patches")
FASTEST = {2: "vmap", 4: "map"}
"""By the axes of the first weight: of linear layers, of convolutions."""


def build(work: Work, form: str = "") -> Side:
    import jax
    import optax

    jax.config.update("jax_enable_x64", work.dtype == "float64")
    jax.config.update("jax_platforms", "cpu")
    optimizer = (optax.sgd if work.optim["name"] == "sgd" else optax.adam)(work.optim["lr"])
    tasks = tuple(jax.numpy.asarray(to_nhwc(work.arrays[k])) for k in ("support_x", "support_y", "query_x", "query_y"))
    found = value_and_gradient(work, form or FASTEST[work.theta["block0.weight"].ndim])

    def update(theta: Any, state: Any) -> Any:
        loss, gradient = found(theta, tasks)
        moves, state = optimizer.update(gradient, state, theta)
        return loss, optax.apply_updates(theta, moves), state

    def start() -> Any:
        theta = {k: jax.numpy.asarray(to_hwio(v)) for k, v in work.theta.items()}
        return theta, optimizer.init(theta)

    compiled = jax.jit(update, donate_argnums=(0, 1))
    now = [start()]

    def gradient() -> tuple[float, dict[str, np.ndarray]]:
        loss, result = jax.jit(found)(now[0][0], tasks)
        return float(loss), {k: from_hwio(np.asarray(v)) for k, v in result.items()}

    def step() -> Any:
        loss, theta, state = compiled(*now.pop())
        now.append((theta, state))
        return jax.block_until_ready((loss, theta))[0]

    return Side(gradient, step)


def value_and_gradient(work: Work, form: str) -> Any:
    """theta, tasks -> mean query loss and its gradient."""
    import jax
    import jax.numpy as jnp

    def inner_loss(w: Any, x: Any, y: Any) -> Any:
        return loss_of(predict(work, w, x, form), y)

    def query_loss(theta: Any, task: Any) -> Any:
        support_x, support_y, query_x, query_y = task
        fast = theta
        for _ in range(work.algo["inner_steps"]):
            slope = jax.grad(inner_loss)(fast, support_x, support_y)
            fast = jax.tree.map(lambda w, g: w - work.algo["inner_lr"] * g, fast, slope)
        return inner_loss(fast, query_x, query_y)

    if form in ("vmap", "patches"):
        return jax.value_and_grad(lambda theta, tasks: jax.vmap(query_loss, (None, 0))(theta, tasks).mean())

    def one_by_one(theta: Any, tasks: Any) -> Any:
        each = jax.value_and_grad(query_loss)
        if form == "map":
            found = jax.lax.map(lambda task: each(theta, task), tasks)
        else:
            results = [each(theta, tuple(a[i] for a in tasks)) for i in range(len(tasks[0]))]
            found = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
        return jax.tree.map(lambda leaf: leaf.mean(0), found)

    return one_by_one


def predict(work: Work, w: Any, x: Any, form: str) -> Any:
    """The network of the case; of images, conv4 with strides and a spatial mean."""
    import jax.numpy as jnp
    from jax.nn import relu

    if w["block0.weight"].ndim == 2:
        for i in range(sum(k.endswith(".shift") for k in w)):
            x = relu(x @ w[f"block{i}.weight"].T + w[f"block{i}.shift"])
        return x @ w["head.weight"].T + w["head.bias"]
    for i in range(4):
        x = convolve(x, w[f"block{i}.weight"], form)
        mean = x.mean((0, 1, 2))
        variance = jnp.square(x - mean).mean((0, 1, 2))
        x = relu((x - mean) * (w[f"block{i}.gain"] / jnp.sqrt(variance + 1e-5)) + w[f"block{i}.shift"])
    x = x.mean((1, 2))
    return x @ w["head.weight"].T + w["head.bias"]


def convolve(x: Any, weight: Any, form: str) -> Any:
    """3x3 with stride 2 and padding 1; x [B, H, W, C], weight [3, 3, C, F]."""
    from jax import lax

    layout = ("NHWC", "HWIO", "NHWC")
    padding = ((1, 1), (1, 1))
    if form != "patches":
        return lax.conv_general_dilated(x, weight, (2, 2), padding, dimension_numbers=layout)
    patches = lax.conv_general_dilated_patches(x, (3, 3), (2, 2), padding, dimension_numbers=layout)
    return patches @ weight.transpose(2, 0, 1, 3).reshape(-1, weight.shape[-1])  # patches hold C before 3 x 3


def loss_of(prediction: Any, y: Any) -> Any:
    import jax.numpy as jnp
    import optax

    if jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.square(prediction - y).mean()
    return optax.softmax_cross_entropy_with_integer_labels(prediction, y).mean()


def to_nhwc(x: np.ndarray) -> np.ndarray:
    """[T, B, C, H, W] -> [T, B, H, W, C]; anything else stays."""
    return np.ascontiguousarray(np.moveaxis(x, 2, -1)) if x.ndim == 5 else x


def to_hwio(w: np.ndarray) -> np.ndarray:
    """[F, C, 3, 3] -> [3, 3, C, F]; anything else stays."""
    return w.transpose(2, 3, 1, 0) if w.ndim == 4 else w


def from_hwio(w: np.ndarray) -> np.ndarray:
    return w.transpose(3, 2, 0, 1) if w.ndim == 4 else w
