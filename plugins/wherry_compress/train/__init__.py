"""Training: an ONNX graph as a torch module, and what brings accuracy back after other passes."""
