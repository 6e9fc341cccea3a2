"""The built-in plugin for compress."""
