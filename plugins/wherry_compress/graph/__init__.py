"""What passes ask of a graph: what it costs, what is shared in it, which channels hang together."""
