"""Records: what is kept of a run, and what is judged from it."""
