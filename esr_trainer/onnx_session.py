"""Opening an ONNX model from its bytes alone, on one thread; free of torch, so that the server can use it."""

import onnxruntime as ort


class OnnxModelError(ValueError):
    """It is no ONNX model, keeps weights in other files, or does not load."""


def session(content: bytes) -> ort.InferenceSession:
    """The model, on one thread; nothing is read but these bytes.

    Raises:
        OnnxModelError: it keeps weights in other files, or does not load.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if reads_other_files(content):
        raise OnnxModelError("it keeps weights in other files; save it as one file")
    try:
        # the fallback would print to stdout, and try the same again
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common class but Exception
        raise OnnxModelError(f"it cannot be loaded: {first_line(error)}") from error


def reads_other_files(content: bytes) -> bool:
    """Whether any tensor of the model, in whatever graph, lies outside of it.

    Raises:
        OnnxModelError: it is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError, Message

    def external(message: Message) -> bool:
        if isinstance(message, onnx.TensorProto):
            return bool(message.data_location == onnx.TensorProto.EXTERNAL)
        for field, value in message.ListFields():
            if field.message_type is not None:
                inner = value if isinstance(value, Message) else list(value)
                if any(map(external, [inner] if isinstance(inner, Message) else inner)):
                    return True
        return False

    try:
        return external(onnx.ModelProto.FromString(content).graph)
    except DecodeError as error:
        raise OnnxModelError("it is no ONNX model") from error


def first_line(error: Exception) -> str:
    """The start of another library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
