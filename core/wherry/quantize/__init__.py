"""Quantised ONNX graphs: those that are given (`given`) and those that are written (`qdq`)."""
