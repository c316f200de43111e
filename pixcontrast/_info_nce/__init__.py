"""The loss: one equation in several forms, each with or without a negative sampler.

- `dense.py`: the textbook formula, differentiated by autograd.
- `tiled/passes.py`: bounded memory, in PyTorch.
- `fused/passes.py`: the same passes as Triton kernels, which are in `fused/kernels/`.
- `sharded.py`: these two over entries on several ranks.

`derivative.py` has the gradient of all but `dense.py` and the kernels. `dispatch.py` and
`operators.py` select the form of a call.
"""
