"""The built-in plugin for Caffe2."""
