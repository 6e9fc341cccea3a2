"""Reaching boards by SSH: configuration, host keys, login, and the link that they make."""
