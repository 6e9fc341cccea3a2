"""Devices: the transports, and the agent that runs on a board."""
