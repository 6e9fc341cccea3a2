"""The engine: what runs a plan, and the processes and environments that its tools live in."""
