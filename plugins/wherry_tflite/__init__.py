"""The built-in plugin for tflite."""
