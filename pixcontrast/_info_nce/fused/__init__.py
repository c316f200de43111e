"""The fused form: Triton kernels and their launches."""
