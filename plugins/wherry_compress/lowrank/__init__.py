"""Low rank: a layer becomes a chain of smaller ones that compute nearly the same."""
