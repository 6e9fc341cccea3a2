"""The built-in plugin for onnxruntime."""
