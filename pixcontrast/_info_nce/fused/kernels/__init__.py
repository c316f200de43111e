"""Triton kernels of the fused form. Only `pixcontrast._info_nce.fused` imports them."""
