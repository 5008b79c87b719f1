"""Channels chosen once for all layers that share them: planned on shapes, applied on arrays."""
