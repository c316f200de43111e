"""Implementation of the memory bank: ring buffers, new entries, checkpoints, module buffers."""
