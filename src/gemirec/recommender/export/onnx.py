"""From a module of :mod:`~gemirec.recommender.export.traced` to an ONNX file, and from that to one in 8 bits."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gemirec.errors import MissingExtraError
from gemirec.recommender.export.vectors import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gemirec.recommender.export.traced import Case, Graph

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of parameters above which they lie in a file of their own, ``NAME.onnx.data``: one file of ONNX holds 2 GB."""


def need_onnx() -> None:
    """Raise if a package of the extra ``export`` is missing.

    Raises:
        MissingExtraError: It is.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise MissingExtraError("export", name) from None


def write_graph(path: Path, graph: Graph, example: Case, *, dynamo: bool, opset: int, facts: Mapping[str, Any]) -> None:
    """Trace a graph and write it as ONNX.

    Args:
        path: The file.
        graph: In ``eval`` mode, on the CPU.
        example: What to trace with: at least 2 users, a length of at least 2.
        dynamo: Take torch's newer exporter, which can do more models and takes half a minute or more.
        opset: ONNX operator set.
        facts: For the file's metadata, as JSON.

    Raises:
        Exception: Whatever torch's exporter raises for what it cannot do.
    """
    import onnx

    axes, inputs, outputs = graph.dynamic, list(example.inputs), list(example.outputs)
    options: dict[str, Any] = {"dynamic_axes": {name: axes[name] for name in (*inputs, *outputs)}}
    if dynamo:
        free = torch.export.Dim.DYNAMIC
        options = {"dynamic_shapes": {"inputs": tuple(dict.fromkeys(axes[name], free) for name in inputs)}}
        # Its optimiser takes x + 1e-9 for x, and a zero vector becomes 0 / 0; ONNX Runtime optimises on loading anyway.
        options |= {"verbose": False, "optimize": False}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet(), torch.no_grad():
        raw = Path(folder) / path.name
        torch.onnx.export(
            graph,
            tuple(example.inputs.values()),
            raw,
            input_names=inputs,
            output_names=outputs,
            opset_version=opset,
            dynamo=dynamo,
            **options,
        )
        model = onnx.load(raw)
    _drop_origins(model)
    _replace_bool_choices(model)
    _name_axes(model, axes, example)
    _save(path, model, facts)


def write_int8(path: Path, source: Path, facts: Mapping[str, Any]) -> None:
    """Write a graph with its weights and tables in 8 bits; activations are rounded as they come.

    Args:
        path: The file.
        source: A file of :func:`write_graph`.
        facts: For the file's metadata.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    large = _parameter_bytes(model) > EXTERNAL_ABOVE
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        raw = Path(folder) / path.name
        # Only weights that are constant: products of two activations lose much and gain nothing.
        options = {"MatMulConstBOnly": True}
        quantize_dynamic(
            source, raw, weight_type=QuantType.QInt8, extra_options=options, use_external_data_format=large
        )
        model = onnx.load(raw)
    _drop_origins(model)
    _save(path, model, facts)


def _save(path: Path, model: Any, facts: Mapping[str, Any]) -> None:
    """Write a graph with its facts, large parameters beside it, and check it."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(facts, ensure_ascii=False)})
    large = _parameter_bytes(model) > EXTERNAL_ABOVE
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)
    onnx.checker.check_model(path)


def _parameter_bytes(model: Any) -> int:
    return sum(len(parameter.raw_data) for parameter in model.graph.initializer)


def _drop_origins(model: Any) -> None:
    """Take out what names the source files and paths of the machine that exported."""
    graph = model.graph
    for thing in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        thing.doc_string = ""
        if hasattr(thing, "metadata_props"):
            del thing.metadata_props[:]


def _name_axes(model: Any, axes: Mapping[str, Mapping[int, str]], example: Case) -> None:
    """State the sizes of inputs and outputs: free ones by name, the others as a number; drop those between."""
    sizes = example.inputs | example.outputs
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for axis, size in enumerate(sizes[value.name].shape):
            free = axes[value.name].get(axis)
            shape.dim.add(**({"dim_value": size} if free is None else {"dim_param": free}))
    del model.graph.value_info[:]


def _replace_bool_choices(model: Any) -> None:
    """Write ``where(c, a, b)`` of truth values as ``(c and a) or (not c and b)``: ONNX Runtime has no such choice."""
    from onnx import TensorProto, helper, shape_inference

    graph = model.graph
    inputs = [helper.make_tensor_value_info(p.name, p.data_type, p.dims) for p in graph.initializer]
    types = helper.make_graph(graph.node, "types", [*graph.input, *inputs], graph.output)
    skeleton = helper.make_model(types, opset_imports=model.opset_import, ir_version=model.ir_version)
    known = shape_inference.infer_shapes(skeleton).graph
    truth = {v.name for v in (*known.value_info, *known.output) if v.type.tensor_type.elem_type == TensorProto.BOOL}
    nodes = []
    for node in graph.node:
        if node.op_type != "Where" or node.output[0] not in truth:
            nodes.append(node)
            continue
        (choice, one, other), out = node.input, node.output[0]
        nodes += [
            helper.make_node("And", [choice, one], [f"{out}_if"], f"{out}_if"),
            helper.make_node("Not", [choice], [f"{out}_not"], f"{out}_not"),
            helper.make_node("And", [f"{out}_not", other], [f"{out}_else"], f"{out}_else"),
            helper.make_node("Or", [f"{out}_if", f"{out}_else"], [out], f"{out}_or"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks to themselves: parity says what is wrong, if anything is."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
