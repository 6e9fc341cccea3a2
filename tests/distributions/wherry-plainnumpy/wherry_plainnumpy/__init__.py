"""A backend of wherry that runs small networks with numpy alone."""
