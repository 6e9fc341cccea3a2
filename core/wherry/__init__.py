"""wherry carries a trained network to the boards it must run on and comes back with proof."""

__version__ = "0.1.0"
