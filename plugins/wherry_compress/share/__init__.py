"""Weights that share few values: smaller to send, as the container of `pack.huffman`."""
