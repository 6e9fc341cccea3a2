"""Before int8: weights and biases that lose less when a backend rounds them."""
