"""Reading the weights back out of an ONNX graph that torch's TorchScript exporter wrote.

The exporter keeps the torch names of biases, norms, convolutions and tokens. Constant folding takes two names away:
every `nn.Linear` weight becomes an anonymous MatMul initialiser, transposed, whose name is told by the node that uses
it; and a position table whose grid is interpolated in the graph becomes two anonymous pieces, the class row and the
grid rows. Tensors of equal values are stored once and named by Identity nodes. This is a reader of weights, not of
graphs: nothing is run, and there is no writer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Read the initialisers of an ONNX file under their torch names.

    Args:
        path: an ONNX file with its weights inside.

    Returns:
        Name to tensor; linear weights are back in torch's (out, in) order, a split position table is one again.

    Raises:
        RequestError: onnx is not installed, the file is damaged, or an anonymous tensor can't be named.
    """
    try:
        import onnx
    except ImportError as error:
        raise RequestError("reading ONNX files needs the package onnx: pip install onnx") from error
    try:
        return _named(onnx.load(path).graph, path)
    except RequestError:
        raise
    except Exception as error:  # a graph of arbitrary bytes fails in as many ways as there are
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RequestError(f"{path} is not an ONNX file, or is damaged ({text})") from error


def _named(graph: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a graph under their torch names."""
    values, nodes = _without_identities(graph)
    named = {name: value for name, value in values.items() if not name.startswith("onnx::")}
    pieces: dict[str, list[Tensor]] = {}
    used = set(named)
    for node in nodes:
        for name in node.input:
            if name in used or name not in values:
                continue
            used.add(name)
            module = _module_of(node.name)
            if node.op_type in {"MatMul", "Gemm"} and values[name].ndim == 2:
                _put(named, f"{module}.weight", _linear_weight(node, values[name]), path)
            elif node.op_type in {"Concat", "Reshape"} and module.endswith("embeddings") and values[name].ndim == 3:
                pieces.setdefault(module, []).append(values[name])
            else:
                raise RequestError(f"{path} uses the unnamed tensor {name} in {node.name}: it can't be told what it is")
    for module, parts in pieces.items():
        # The class row is one token, the grid rows are many; the graph lists them in no fixed order.
        table = torch.cat(sorted(parts, key=lambda part: part.shape[1]), dim=1)
        _put(named, f"{module}.position_embeddings", table, path)
    if unused := sorted(values.keys() - used):
        raise RequestError(f"{path} holds {unused[0]}, which no node uses: it can't be told what it is")
    return named


def without_wrapper(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take off what stands before every name, because a network was exported inside of modules of somebody's own.

    Returns:
        Name to tensor, and what was taken off; empty for nothing.
    """
    prefix = os.path.commonprefix(list(tensors))  # noqa: RUF071 - of letters; cut back to whole parts below
    prefix = prefix[: prefix.rfind(".") + 1]
    return {name.removeprefix(prefix): value for name, value in tensors.items()}, prefix


def _without_identities(graph: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """Return the graph's tensors under all of their names, and its nodes but those that only give another name."""
    values = {item.name: _tensor(item) for item in graph.initializer}
    nodes = [node for node in graph.node if node.op_type != "Identity"]
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    return values | {other: values[name] for other, name in same.items() if name in values}, nodes


def _module_of(node: str) -> str:
    """Return the dotted name of the module that a node is in; `blocks/blocks.0` is a sequence and its item."""
    parts = node.strip("/").split("/")[:-1]
    inner = [*parts, ""][1:]
    return ".".join(part for part, after in zip(parts, inner, strict=True) if not after.startswith(f"{part}."))


def _tensor(item: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(item).copy())


def _linear_weight(node: Any, value: Tensor) -> Tensor:
    """Return a linear layer's weight as (out, in); MatMul holds (in, out), Gemm says which."""
    transposed = any(attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute)
    return value if transposed else value.T.contiguous()


def _put(named: dict[str, Tensor], name: str, value: Tensor, path: Path) -> None:
    if name in named:
        raise RequestError(f"{path} holds two tensors for {name}")
    named[name] = value
