"""Noise of exactly known law: counter-based random words, integer CDFs, and the sampler that inverts them.

`philox` makes the random words, `distributions` the integer CDFs, `sampler` joins the two in NumPy, and `kernels` does
what `sampler` does in compiled code. `PROOF.md` beside them proves that each value drawn has the law of its table.
"""
