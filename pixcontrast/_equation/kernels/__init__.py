"""The Triton kernels of the fused form. Only `pixcontrast._equation.fused` imports them."""
