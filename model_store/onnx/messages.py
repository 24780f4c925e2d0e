"""Messages of an `.onnx` file: the fields that are read, and the fields that are rejected.

ONNX's `onnx.proto` defines the numbers of the fields. The fields of functions, training, subgraphs,
sparse tensors, strings as elements and external files are known and rejected with a reason. Fields
that are in neither list are rejected as unknown.
"""

from __future__ import annotations

from model_store.onnx.wire import EXPORT_AGAIN, Field, Kind, Message, Refused

SAVE_INSIDE = "Save as one file: onnx.save(onnx.load(path), path, save_as_external_data=False)"
ONE_GRAPH = "Export the network for inference, without control flow"

EXTERNAL = Refused("data in another file", SAVE_INSIDE)
TRAINING = Refused("training information", "Export the network for inference")
FUNCTIONS = Refused(
    "functions", "Inline the functions with onnx.inliner.inline_local_functions(model)"
)
SPARSE = Refused("sparse tensors", "Store the parameters as dense tensors")
SUBGRAPH = Refused("a subgraph", ONE_GRAPH)
STRINGS = Refused("strings", EXPORT_AGAIN)
DEVICES = Refused("a configuration of several devices", "Export the network for one device")
NOT_A_TENSOR = Refused("a type that is not a tensor", EXPORT_AGAIN)


def _text(name: str) -> Field:
    return Field(name, Kind.TEXT)


ENTRY = Message("StringStringEntryProto", {1: _text("key"), 2: _text("value")})
METADATA = Field("metadata_props", ENTRY, repeated=True)

TENSOR = Message(
    "TensorProto",
    {
        1: Field("dims", Kind.INT, repeated=True),
        2: Field("data_type", Kind.INT32),
        3: Refused("a segment", SAVE_INSIDE),
        4: Field("float_data", Kind.PAYLOAD),
        5: Field("int32_data", Kind.PAYLOAD),
        6: STRINGS,
        7: Field("int64_data", Kind.PAYLOAD),
        8: Field("name", Kind.NAME),
        9: Field("raw_data", Kind.PAYLOAD),
        10: Field("double_data", Kind.PAYLOAD),
        11: Refused("uint64 numbers", "Store the numbers as int64"),
        12: _text("doc_string"),
        13: EXTERNAL,
        14: Field("data_location", Kind.INT32),
        16: METADATA,
    },
)
ATTRIBUTE = Message(
    "AttributeProto",
    {
        1: Field("name", Kind.NAME),
        2: Field("f", Kind.FLOAT),
        3: Field("i", Kind.INT),
        4: Field("s", Kind.NAME),
        5: Field("t", TENSOR),
        6: SUBGRAPH,
        7: Field("floats", Kind.FLOAT, repeated=True),
        8: Field("ints", Kind.INT, repeated=True),
        9: STRINGS,
        10: Refused("a list of tensors"),
        11: SUBGRAPH,
        13: _text("doc_string"),
        14: NOT_A_TENSOR,
        15: NOT_A_TENSOR,
        20: Field("type", Kind.INT32),
        21: FUNCTIONS,
        22: SPARSE,
        23: SPARSE,
    },
)
NODE = Message(
    "NodeProto",
    {
        1: Field("input", Kind.NAME, repeated=True),
        2: Field("output", Kind.NAME, repeated=True),
        3: Field("name", Kind.NAME),
        4: Field("op_type", Kind.NAME),
        5: Field("attribute", ATTRIBUTE, repeated=True),
        6: _text("doc_string"),
        7: Field("domain", Kind.NAME),
        8: Field("overload", Kind.NAME),
        9: METADATA,
        10: DEVICES,
    },
)
DIMENSION = Message(
    "TensorShapeProto.Dimension",
    {
        1: Field("dim_value", Kind.INT),
        2: Field("dim_param", Kind.NAME),
        3: _text("denotation"),
    },
)
SHAPE = Message("TensorShapeProto", {1: Field("dim", DIMENSION, repeated=True)})
TENSOR_TYPE = Message(
    "TypeProto.Tensor", {1: Field("elem_type", Kind.INT32), 2: Field("shape", SHAPE)}
)
TYPE = Message(
    "TypeProto",
    {
        1: Field("tensor_type", TENSOR_TYPE),
        4: NOT_A_TENSOR,
        5: NOT_A_TENSOR,
        6: _text("denotation"),
        7: NOT_A_TENSOR,
        8: NOT_A_TENSOR,
        9: NOT_A_TENSOR,
    },
)
VALUE = Message(
    "ValueInfoProto",
    {
        1: Field("name", Kind.NAME),
        2: Field("type", TYPE),
        3: _text("doc_string"),
        4: METADATA,
    },
)
GRAPH = Message(
    "GraphProto",
    {
        1: Field("node", NODE, repeated=True),
        2: Field("name", Kind.NAME),
        5: Field("initializer", TENSOR, repeated=True),
        10: _text("doc_string"),
        11: Field("input", VALUE, repeated=True),
        12: Field("output", VALUE, repeated=True),
        13: Field("value_info", VALUE, repeated=True),
        14: Refused("annotations of quantization", "Quantize the network to the QDQ format"),
        15: SPARSE,
        16: METADATA,
    },
)
OPSET = Message(
    "OperatorSetIdProto", {1: Field("domain", Kind.NAME), 2: Field("version", Kind.INT)}
)
MODEL = Message(
    "ModelProto",
    {
        1: Field("ir_version", Kind.INT),
        2: _text("producer_name"),
        3: _text("producer_version"),
        4: _text("domain"),
        5: Field("model_version", Kind.INT),
        6: _text("doc_string"),
        7: Field("graph", GRAPH),
        8: Field("opset_import", OPSET, repeated=True),
        14: METADATA,
        20: TRAINING,
        25: FUNCTIONS,
        26: DEVICES,
    },
)
