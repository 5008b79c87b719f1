"""The command line `tlv-jax`, one entry point to all that the project does.

It stands here because a command may need any part of the project, and `train` is the one package
that may import all others.
"""
