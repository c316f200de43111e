"""Several ranks: what a training step costs, computed and measured."""
