"""How tensors lie in slots, and how affine maps are computed there."""
