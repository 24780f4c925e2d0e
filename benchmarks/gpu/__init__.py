"""Checks and measures ONNX Runtime on a GPU; see `benchmarks.check_gpu`."""
