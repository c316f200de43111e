"""The loss: one equation in several forms.

`dense` is the textbook formula, `tiled` has bounded memory, `fused` runs Triton kernels, and
`sharded` covers entries on several ranks. All of them take a negative sampler.
"""
