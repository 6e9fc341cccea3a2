"""The agent: what wherry runs on a board. Python 3.8, standard library, numpy where tensors are.

These files are shipped together and import nothing of ours but each other. The host imports
`frames` from here too, so that the wire format exists once.
"""
