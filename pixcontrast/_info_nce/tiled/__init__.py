"""The tiled form: pure PyTorch, bounded memory, any device."""
