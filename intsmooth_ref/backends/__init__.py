"""What other runtimes compute: the arithmetic of their int8 operators as plain NumPy functions, for comparison only.

A runtime that requantizes in float32 differs from the integer model in rare accumulators near a tie, and from other
runtimes in others. Here each such rule has a name and a definition, so that a difference is explained by a rule, never
allowed by a tolerance. Nothing in `model`, `engine` or `certify` imports this room.

    parameters.py      what the rules are told: scales as the runtime stores them, zero points, ranges
    floating_point.py  float32 and float64 arithmetic, every operation rounded where it says so
    requantization.py  from the int32 accumulator of a convolution or a product to 8 bits
    addition.py        two 8-bit tensors added
    pooling.py         averages of 8-bit values
    accumulation.py    sums of products that are not exact
    registry.py        which rule belongs to which operator of which runtime and version
    near_ties.py       operands that tell the rules apart

The versions are those that a rule was measured with, over forced near-ties; the tests do so again wherever the runtime
is installed. Other versions and other processors may do otherwise.
"""
