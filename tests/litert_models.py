"""Networks of one int8 operator for LiteRT, and running them by each of its sets of kernels."""

import numpy as np
import pytest

RESOLVERS = {"optimized": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF", "XNNPACK": "BUILTIN"}


class Tensor:
    """A tensor of the network: quantized by one scale or one a channel; `data` for constants."""

    def __init__(self, shape, dtype="int8", scales=None, zero_point=0, axis=0, data=None):
        self.shape, self.dtype, self.scales, self.zero_point = shape, dtype, scales, zero_point
        self.axis, self.data = axis, data


def network(operator, version, options, tensors):
    """A flatbuffer: the last tensor is the output, those without data are the inputs."""
    flatbuffers = pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
    model, graph, node = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.operatorCodes, model.buffers, model.subgraphs = 3, [code], [schema.BufferT()], [graph]
    graph.tensors, graph.operators = [], [node]
    for index, tensor in enumerate(tensors):
        graph.tensors.append(_tensor(schema, model, tensor, index))
    kind, fields = options
    node.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    node.builtinOptions = getattr(schema, f"{kind}T")()
    for name, value in fields.items():
        setattr(node.builtinOptions, name, value)
    node.inputs, node.outputs = list(range(len(tensors) - 1)), [len(tensors) - 1]
    graph.inputs = [index for index in node.inputs if tensors[index].data is None]
    graph.outputs = node.outputs
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(schema, model, tensor, index):
    made = schema.TensorT()
    made.name, made.shape, made.buffer = f"tensor{index}".encode(), list(tensor.shape), 0
    made.type = getattr(schema.TensorType, tensor.dtype.upper())
    if tensor.scales is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = [float(scale) for scale in np.atleast_1d(tensor.scales)]
        made.quantization.zeroPoint = [tensor.zero_point] * len(made.quantization.scale)
        made.quantization.quantizedDimension = tensor.axis
    if tensor.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data, tensor.dtype).tobytes(), np.uint8)
        model.buffers.append(buffer)
        made.buffer = len(model.buffers) - 1
    return made


def run(model, kernels, *inputs):
    """The output, int64, of one thread."""
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    resolver = getattr(interpreter_module.OpResolverType, RESOLVERS[kernels])
    interpreter = interpreter_module.Interpreter(
        model_content=model, experimental_op_resolver_type=resolver, num_threads=1
    )
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs):
        interpreter.set_tensor(detail["index"], values.astype(np.int8))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).astype(np.int64)
