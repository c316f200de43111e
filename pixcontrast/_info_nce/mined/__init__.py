"""The tiled form with a negative sampler: exact selection from complete rows of similarities."""
