"""An ordinary `torch.nn.Module` as a network of metarun: a frozen value whose weights are passed to every call.

    net = from_module(SmallConv(outputs=5), input_shape=(1, 28, 28))
    net.apply(net.init(0), x)

Parameters keep the module's names, but those of the head are named `head.*`. Buffers, and parameters that do not
require a gradient, are constants. The module itself is copied and never changed; layers that change buffers, draw
random numbers or have no batching rule are replaced in the copy (layers.py).
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from metarun.config.components import locate_trusted
from metarun.data.features import FixedPart
from metarun.errors import SettingError, UserError, nearest, one_line, require
from metarun.models import layers
from metarun.models.module_check import check_batching, try_once
from metarun.models.network import apply_row_by_row
from metarun.models.norm import Moments, pool_moments
from metarun.types import HEAD, NOT_WEIGHTS, Params, Task

NO_HEAD, FEATURES = "none", "features"

NUMBERS_AT_ONCE = 2**26
"""Of one layer, when population statistics are measured: 256 MB; several such tensors are alive at a time."""

Make = Callable[[], nn.Module]
Stats = tuple[Moments, ...] | Tensor
"""The moments of each batch normalisation in the order of their calls; with norm=joined the rows to join with."""


@dataclass(frozen=True, eq=False)
class ModuleNetwork:
    """A module as a network; `from_module` and `module` make one."""

    name: str  # of the module's class
    source: nn.Module  # as it was given
    make: Make | None  # makes it anew with weights of the seed in force; None: its weights are the initial ones
    template: nn.Module  # the copy that is called
    tape: layers.Tape  # of the copy's layers
    names: tuple[tuple[str, str], ...]  # of the parameters: here, in the copy
    initial: Params  # those of `source`
    constants: Params  # by their names in the copy
    head: str | None  # its name in the copy; None: the network ends in its features
    batch_norm: str  # the mode of its batch normalisations
    input_shape: tuple[int, ...] | None = None
    features: int = 0  # D
    attends: bool = False  # it calls scaled_dot_product_attention
    widest: int = 0  # the most numbers of a row before a batch normalisation
    fixed: tuple[Moments, ...] | None = None  # population statistics, once measured
    add_noise: Callable[..., tuple[Params, Task]] | None = None  # None without dropout: it is no NoisyModel then
    fixed_part: FixedPart | None = None  # what comes before all that is trained
    weights_sha256: str | None = None  # of trained weights that it begins with

    @property
    def norm(self) -> str:
        """The mode of its batch normalisations, "none" without any."""
        return self.batch_norm if layers.contains(self.template, layers.EpisodeNorm) else "none"

    @property
    def matmul_only(self) -> bool:
        """Whether no weight is that of a convolution."""
        return all(w.ndim <= 2 for w in (*self.initial.values(), *self.constants.values()))

    @property
    def recurrent(self) -> bool:
        """Whether it has a layer that takes one time step after another."""
        return layers.contains(self.template, layers.Recurrent)

    def fit(self, input_shape: tuple[int, ...], outputs: int | None) -> ModuleNetwork:
        """The same module for inputs of this shape: with so many outputs, or without its head for None.

        Raises `UserError` if its head has another number of outputs, if it fails on such inputs, or if it cannot be
        batched over tasks.
        """
        headless = outputs is None and self.head is not None
        network = _wrap(self.source, self.make, self.head, self.batch_norm, headless) if headless else self
        return _check(replace(network, input_shape=input_shape), input_shape, outputs)

    def init(self, seed: int) -> Params:
        """The weights of a module made with this seed, or those of the given module; the global random state stays."""
        if self.make is None:
            return {name: w.clone() for name, w in self.initial.items()}
        own = dict(_construct(self.make, self.name, seed).named_parameters())
        return {name: own[theirs].detach().clone() for name, theirs in self.names}

    def apply(self, params: Params, x: Tensor, stats: Stats | None = None) -> Tensor:
        """[B, ...] -> [B, outputs], or [B, D] without a head; `stats` replace the batch's own moments."""
        if isinstance(stats, Tensor):
            return apply_row_by_row(functools.partial(self.apply, params), x, stats)
        out, _ = self._run(params, x, stats if stats is not None else self.fixed)
        return out.flatten(1) if self.head is None and out.ndim > 2 else out

    def activations(self, params: Params, x: Tensor, stats: Stats | None = None) -> dict[str, Tensor]:
        """What each layer before the head puts out, flattened, and `features`, the input of the head.

        A layer is a child of the module that has parameters; of a module with one child, a child of that.
        """
        if isinstance(stats, Tensor):
            return apply_row_by_row(functools.partial(self.activations, params), x, stats)
        found: dict[str, Tensor] = {}

        def keep(name: str, value: Any) -> None:
            value = value[0] if isinstance(value, tuple) else value  # of a recurrent layer, the outputs
            if isinstance(value, Tensor) and value.ndim >= 2:
                rows = value if len(value) == len(x) else value.transpose(0, 1)
                if len(rows) == len(x):
                    found[name] = rows.flatten(1)

        hooks = [
            part.register_forward_hook(lambda _part, _args, out, name=name: keep(name, out))
            for name, part in _layers(self.template, self.head)
        ]
        if self.head is not None:
            head = self.template.get_submodule(self.head)
            hooks.append(head.register_forward_pre_hook(lambda _part, args: keep(FEATURES, args[0])))
        try:
            outputs = self.apply(params, x, stats)
        finally:
            for hook in hooks:
                hook.remove()
        features = found.pop(FEATURES, outputs)
        return found | {FEATURES: features}

    def query_stats(self, params: Params, support_x: Tensor) -> Stats | None:
        if self.norm == "joined":
            return support_x
        return self.measure(params, support_x) if self.norm == "support" else None

    def calibrate(self, params: Params, x: Tensor) -> ModuleNetwork:
        """With the moments of x; of large networks those of parts of x, each normalised with its own, put together."""
        if self.norm != "population":
            return self
        parts = x.tensor_split(min(len(x), math.ceil(len(x) * self.widest / NUMBERS_AT_ONCE) or 1))
        found = zip(*(self.measure(params, part) for part in parts), strict=True)
        rows = [len(part) for part in parts]
        return replace(self, fixed=tuple(each[0] if len(rows) == 1 else pool_moments(each, rows) for each in found))

    def measure(self, params: Params, x: Tensor) -> tuple[Moments, ...]:
        """The moments before each batch normalisation on the batch x, the earlier ones normalised with theirs."""
        return self._run(params, x, None, measures=True)[1]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows [B, ...] -> themselves; rows with keys [B, n + 2] -> inputs [B, ...] and keys [B, 2]."""
        if self.input_shape is None or self.add_noise is None or tuple(x.shape[1:]) == self.input_shape:
            return x, None
        size = math.prod(self.input_shape)
        return x[:, :size].reshape(-1, *self.input_shape), x[:, size:]

    def _run(
        self, params: Params, x: Tensor, stats: tuple[Moments, ...] | None, measures: bool = False
    ) -> tuple[Any, tuple[Moments, ...]]:
        """What the module returns, and the moments that were measured."""
        x, keys = self._split(x)
        tensors = {theirs: params[name] for name, theirs in self.names}
        like = next(iter(tensors.values()), x)
        for name, value in self.constants.items():
            tensors[name] = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
        self.tape.begin(stats, keys, measures)
        if self.attends:
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivatives
                out = functional_call(self.template, tensors, (x,))
        else:
            out = functional_call(self.template, tensors, (x,))
        return out, tuple(self.tape.end())


def from_module(
    module: nn.Module, head: str | None = None, norm: str = "batch", input_shape: tuple[int, ...] | None = None
) -> ModuleNetwork:
    """A module as a network whose initial weights are the module's own, whatever the seed.

    `head` names the last layer; None: the last `nn.Linear`; "none": there is no head. `norm` says what statistics
    `nn.BatchNorm` takes: batch, joined, support, population (norm.py) or running, the module's own as constants.
    `input_shape`, of one row, is filled in where metarun builds a learner; with it the module is tried out at once.
    Raises `SettingError` for a head or norm that cannot be, `UserError` for a layer that is not supported.
    """
    require(isinstance(module, nn.Module), "module", type(module).__name__, "must be a torch.nn.Module")
    lazy = any(is_lazy(p) for p in module.parameters())
    require(not lazy, "module", type(module).__name__, "has lazy layers; call it once on a batch before")
    network = _wrap(_hold(module), None, head, norm)
    if input_shape is None:
        return network
    return _check(replace(network, input_shape=input_shape), input_shape, None, exact=False)


def as_network(model: Any, norm: Any) -> Any:
    """A module of the user's as a network, its batch normalisation in the mode `norm` if it has that mode, else batch;
    any other network as it is."""
    if not isinstance(model, nn.Module):
        return model
    return from_module(model, norm=norm if norm in layers.MODULE_NORMS else "batch")


def given_weights(model: Any) -> Params | None:
    """The weights of a module passed in Python, which its runs start from whatever their seed, and its constants; None
    of a network that draws its own."""
    network = as_network(model, None)
    fixed = isinstance(network, ModuleNetwork) and network.make is None
    return network.initial | network.constants if fixed else None


def module(
    input_shape: tuple[int, ...],
    outputs: int | None,
    target: str | None,
    args: dict[str, Any],
    head: str | None,
    norm: str,
    trusted_modules: tuple[str, ...],
) -> ModuleNetwork:
    """The module that `target` makes, a class or a function in a trusted package.

    It is called with `args` and, if it has such parameters, with `input_shape` and `outputs`: the number of outputs, or
    None for a learner that wants features. Where it does not take `outputs`, its head must have the right number, and
    is removed for a learner that wants features. Its weights are those that it draws with the seed of `init`.
    """
    made = locate_trusted("target", target, trusted_modules)
    provided = {"input_shape": input_shape, "outputs": outputs}
    given = _arguments(made, args, provided)

    def make() -> nn.Module:
        built = made(**given)
        if not isinstance(built, nn.Module):
            raise UserError(f"makes a {type(built).__name__}, which is no torch.nn.Module")
        if any(is_lazy(p) for p in built.parameters()):
            built(torch.zeros(2, *input_shape))
        return _hold(built)

    ends = "outputs" in given and outputs is None
    try:
        name = getattr(made, "__name__", str(target))
        return make_network(make, name, input_shape, outputs, NO_HEAD if ends else head, norm)
    except SettingError:
        raise
    except UserError as error:
        raise UserError(f"model.target={target}: {error}") from error


def make_network(
    make: Make, name: str, input_shape: tuple[int, ...], outputs: int | None, head: str | None, norm: str
) -> ModuleNetwork:
    """The network of the modules that `make` makes, one for each seed; without its head for `outputs` None.

    `name` is that of what makes them. `head` and `norm` as in `from_module`.
    """
    network = _wrap(_construct(make, name, 0), make, head, norm, remove_head=outputs is None)
    return _check(replace(network, input_shape=input_shape), input_shape, outputs)


def _arguments(made: Any, args: Mapping[str, Any], provided: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the call, checked by the signature."""
    accepted = inspect.signature(made).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for key in args:
            if key not in accepted:
                raise UserError(f"model.args.{key}: no such setting, {nearest(key, accepted.keys() - provided.keys())}")
    given = {k: v for k, v in provided.items() if k in accepted} | dict(args)
    for name, parameter in accepted.items():
        variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and not variable and name not in given:
            raise UserError(f"model.args.{name}: is missing, and has no default")
    return given


def _construct(make: Make, name: str, seed: int) -> nn.Module:
    """The module made with the seed; the global random state is then as before."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        try:
            return make()
        except UserError:
            raise
        except Exception as error:  # of the user's code
            raise UserError(f"{name}: cannot be made ({type(error).__name__}: {one_line(error)[:300]})") from error


def _hold(module: nn.Module) -> nn.Module:
    """The module, or a container of it where it is a layer of torch's, which may have to be replaced."""
    own = isinstance(module, nn.Sequential) or not type(module).__module__.startswith("torch.nn.")
    return module if own else nn.Sequential(module)


def _wrap(
    source: nn.Module, make: Make | None, head: str | None, norm: str, remove_head: bool = False
) -> ModuleNetwork:
    require(norm in layers.MODULE_NORMS, "norm", norm, "choices: " + ", ".join(layers.MODULE_NORMS))
    name, tape, template = type(source).__name__, layers.Tape(), copy.deepcopy(source)
    found = _find_head(template, name, head)
    if found is not None and remove_head:
        parent, _, leaf = found.rpartition(".")
        template.get_submodule(parent)._modules[leaf] = nn.Identity()
        found = None
    layers.replace_layers(template, norm, tape)
    template.train()  # layers that act otherwise in training are replaced; attention has no fast path then
    trained = {k: p for k, p in template.named_parameters() if p.requires_grad}
    frozen = {k: p for k, p in template.named_parameters() if not p.requires_grad} | dict(template.named_buffers())
    names = tuple((_rename(k, found), k) for k in trained)
    _check_names(name, names, found)
    width = getattr(template.get_submodule(found), "in_features", 0) if found is not None else 0
    return ModuleNetwork(
        name=name,
        source=source,
        make=make,
        template=template,
        tape=tape,
        names=names,
        initial={ours: trained[theirs].detach().clone() for ours, theirs in names},
        constants={k: v.detach().clone() for k, v in frozen.items()},
        head=found,
        batch_norm=norm,
        features=width,
    )


def _find_head(module: nn.Module, name: str, head: str | None) -> str | None:
    """The name of the head: the given one, or that of the last `nn.Linear` outside of attention, or of the child `head`
    that has it."""
    parts = dict(module.named_modules())
    inside = tuple(f"{k}." for k, part in parts.items() if isinstance(part, nn.MultiheadAttention))
    linears = [k for k, part in parts.items() if isinstance(part, nn.Linear) and not k.startswith(inside)]
    if head is None:
        last = linears[-1] if linears else None
        return "head" if last is not None and last.startswith(HEAD) else last
    if head == NO_HEAD:
        return None
    candidates = linears or [k for k, part in parts.items() if k and any(True for _ in part.parameters())]
    found = head in parts and any(True for _ in parts[head].parameters()) and head != ""
    require(found, "head", head, f"{name} has no such layer with parameters; {nearest(head, [*candidates, NO_HEAD])}")
    return head


def _rename(name: str, head: str | None) -> str:
    own = head is not None and name.startswith(f"{head}.")
    return HEAD + name.removeprefix(f"{head}.") if own else name


def _check_names(name: str, names: tuple[tuple[str, str], ...], head: str | None) -> None:
    """Raise an error for parameters whose names would be taken for something else."""
    for own, theirs in names:
        if own.startswith(NOT_WEIGHTS):
            raise UserError(f"{name}: parameter {own}: names that begin with {', '.join(NOT_WEIGHTS)} have another use")
        if head not in (None, "head") and theirs.startswith(HEAD):
            raise SettingError("head", head, f"{name} has {theirs} beside it; rename that, or choose head=head")


def _layers(template: nn.Module, head: str | None) -> list[tuple[str, nn.Module]]:
    """The layers before the head, by their names; one that is called `features` is `module.features`."""
    at, children = "", dict(template.named_children())
    while len(children) == 1 and any(True for part in children.values() for _ in part.children()):
        name, part = next(iter(children.items()))
        at, children = f"{at}{name}.", dict(part.named_children())
    listed: list[tuple[str, nn.Module]] = []
    for name, part in children.items():
        several = isinstance(part, (nn.ModuleList, nn.ModuleDict))  # are not called themselves
        inner = part.named_children() if several else [("", part)]
        listed += [(f"{at}{name}.{leaf}".rstrip("."), each) for leaf, each in inner]
    before = [
        (name, part)
        for name, part in listed
        if any(True for _ in part.parameters()) and not (head is not None and f"{head}.".startswith(f"{name}."))
    ]
    return [(f"module.{name}" if name == FEATURES else name, part) for name, part in before]


def _check(
    network: ModuleNetwork, input_shape: tuple[int, ...], outputs: int | None, exact: bool = True
) -> ModuleNetwork:
    """The network with the width of its features, tried out on zeros."""
    params = network.initial
    trial = try_once(network.name, network.apply, params, network.constants, input_shape)
    network = replace(network, attends=trial.attends, widest=network.tape.widest)
    if exact and outputs is not None and tuple(trial.output.shape[1:]) != (outputs,):
        has = f"{network.name} puts out {list(trial.output.shape[1:])} for a row, and the data need [{outputs}]"
        advice = "give it a parameter `outputs`, or set its own by model.args"
        raise SettingError("head", network.head or NO_HEAD, f"{has}; {advice}")
    if layers.contains(network.template, layers.RowDropout, layers.DropBlock):
        network = replace(network, add_noise=layers.add_keys)
        rows = torch.zeros(2, math.prod(input_shape) + layers.KEYS, dtype=trial.output.dtype)
        try_once(network.name, lambda p, _: network.apply(p, rows), params, network.constants, input_shape)
    check_batching(network.name, network.apply, params, input_shape)
    with torch.no_grad():
        rows = torch.zeros(2, *input_shape, dtype=trial.output.dtype)
        width = network.activations(params, rows)[FEATURES].shape[1]
    return replace(network, features=width)
