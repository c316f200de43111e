"""Implementation of the losses: options, contrast set, gathering across ranks, statistics."""
