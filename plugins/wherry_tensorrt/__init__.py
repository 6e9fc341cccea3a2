"""The built-in plugin for TensorRT."""
