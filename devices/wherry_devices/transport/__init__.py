"""Ways to reach a board. Each is a `wherry_devices.connection.Connection` and its descriptor."""
