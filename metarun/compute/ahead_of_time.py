"""A function of tensors, compiled ahead of time: its graph is traced, and a shared library of it is kept in the cache.

A call is one call of C++, without the guards and the Python of `torch.compile`: 0.25 ms rather than 0.37 for the
meta-gradient of 25 sinusoid tasks. A process that finds the library imports nothing of the compiler. What is looked up
is the graph with its constants, so that any change of the function, of torch or of the processor compiles anew.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import platform
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Function = Callable[..., Any]
"""Trees of tensors -> a tree of tensors. A tree is a tensor, or a dictionary or named tuple of trees."""


_traced: dict[Hashable, tuple[Any, Any]] = {}

MOST_SHAPES = 8
"""Sizes of the inputs that are compiled; of further ones the function is called as it is."""


class AheadOfTime:
    """The function, compiled for the shapes of each call that has others than those before.

    `otherwise` makes a function to take its place where it cannot be traced or compiled. Functions of one `identity`
    that compute the same are traced once in a process.
    """

    def __init__(
        self,
        function: Function,
        folder: Path,
        options: Mapping[str, Any],
        otherwise: Callable[[], Function],
        identity: Hashable = None,
    ) -> None:
        self.identity = identity
        self.function, self.folder, self.options, self.otherwise = function, folder, dict(options), otherwise
        self.known: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # of shapes: the library and the tree of its results
        self.other: Function | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self.other is not None:
            return self.other(*inputs)
        leaves = [leaf.contiguous() for leaf in _leaves(inputs)]  # the library takes strides for granted
        shapes = tuple([leaf.shape for leaf in leaves])
        if shapes not in self.known:
            if len(self.known) == MOST_SHAPES:
                return self.function(*inputs)
            try:
                self.known[shapes] = self._find(inputs, leaves)
            except Exception:
                log.info("not compiled ahead of time", exc_info=True)
                self.other = self.otherwise()
                return self.other(*inputs)
        library, like = self.known[shapes]
        return _rebuild(like, iter(library.run(leaves)))

    def _find(self, inputs: Any, leaves: list[Tensor]) -> tuple[Any, Any]:
        """The same from an earlier function of this process, if it has an identity."""
        if self.identity is None:
            return self._compile(inputs, leaves)
        sizes = tuple([(leaf.shape, leaf.dtype) for leaf in leaves])
        key = self.identity, sizes, _names(inputs), tuple(sorted(self.options.items())), torch.get_num_threads()
        if key not in _traced:
            _traced[key] = self._compile(inputs, leaves)
        return _traced[key]

    def _compile(self, inputs: Any, leaves: list[Tensor]) -> tuple[Any, Any]:
        """The library for inputs of these shapes, and the tree of its results."""
        from torch.fx.experimental.proxy_tensor import make_fx  # imports sympy

        trees: list[Any] = []

        def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
            trees.append(self.function(*_rebuild(inputs, iter(leaves))))
            return tuple(_leaves(trees[-1]))

        # Clones: of a tensor that stands in two places the graph would take one place for both.
        example = [leaf.clone() for leaf in leaves]
        graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)
        key, like = self._key(graph, example), _rebuild(trees[-1], itertools.repeat(None))
        path = next(filter(_is_whole, sorted(self.folder.glob(f"{key}-*.so"))), None)
        if path is None:
            part = self.folder / f"{key}.{os.getpid()}.so"
            options = self.options | {"aot_inductor.output_path": str(part)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own about itself
                torch._inductor.aot_compile(graph, tuple(example), options=options)
            path = self.folder / f"{key}-{_checksum(part)}.so"
            part.replace(path)  # whole or not at all, whoever else compiles the same
        return torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1), like

    def _key(self, graph: torch.fx.GraphModule, leaves: list[Tensor]) -> str:
        """A checksum of all that decides the library."""
        sha = hashlib.sha256()
        _add_graph(sha, graph)
        inputs = [(leaf.dtype, tuple(leaf.shape)) for leaf in leaves]
        sha.update(repr((inputs, sorted(self.options.items()), torch.get_num_threads())).encode())
        sha.update(repr((torch.__version__, torch.__config__.show(), _processor())).encode())
        return sha.hexdigest()[:32]


def _add_graph(sha: Any, graph: torch.fx.GraphModule) -> None:
    """A graph's code, its constants, and the graphs of its loops."""
    sha.update(graph.code.encode())
    for name in sorted({str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}):
        constant = getattr(graph, name)
        if isinstance(constant, torch.fx.GraphModule):
            _add_graph(sha, constant)
            continue
        sha.update(f"{name} {constant.dtype} {tuple(constant.shape)}".encode())
        sha.update(constant.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether a library has the checksum in its name: one that is cut off would end the process."""
    return path.stem.rpartition("-")[2] == _checksum(path)


@functools.cache
def _processor() -> str:
    """Its instructions: a library has those of the processor that it was compiled on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)


def _names(tree: Any) -> Hashable:
    """The names of its dictionaries, in order."""
    if isinstance(tree, dict):
        return tuple((key, _names(part)) for key, part in tree.items())
    return tuple(map(_names, tree)) if isinstance(tree, tuple) else None


def _rebuild(like: Any, leaves: Iterator[Any]) -> Any:
    """The tree with these leaves in the place of its own."""
    if isinstance(like, dict):
        return {key: _rebuild(part, leaves) for key, part in like.items()}
    if isinstance(like, tuple):
        parts = [_rebuild(part, leaves) for part in like]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return next(leaves)
