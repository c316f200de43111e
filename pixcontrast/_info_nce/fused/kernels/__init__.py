"""The Triton kernels of the fused form. Only `pixcontrast._info_nce.fused.forward` imports them."""
