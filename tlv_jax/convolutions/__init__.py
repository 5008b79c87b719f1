"""Convolutions in forms that XLA compiles well for a CPU.

XLA's compiler for CPUs is fast at one convolution: of all channels with all, by a kernel that is no
larger than what it reads and writes. Others run in a plain loop. Here they are sums of shifted
products (depthwise kernels), matrix products (pointwise kernels and small activations), or fast
convolutions of blocks of channels (other groups).

Shapes: activations `[N, *spatial, C]`, kernels `[*spatial, C / groups, O]`, as in Flax.
"""

from tlv_jax.convolutions.choice import faster_convolution

__all__ = ["faster_convolution"]
