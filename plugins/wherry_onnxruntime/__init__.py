"""The built-in plugin for ONNX Runtime."""
