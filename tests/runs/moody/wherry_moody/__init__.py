"""A backend of moods, for tests: each target says in which way its tools misbehave."""
