"""The loss: one equation in several forms.

`dense` is the textbook formula, `tiled` has bounded memory, `mined` is the tiled form with a
negative sampler, `fused` runs Triton kernels, and `sharded` covers entries on several ranks.
"""
