"""The built-in plugin for ncnn."""
