"""Validation of arguments, once, before any work is done."""

from pixcontrast._check.options import *  # noqa: F403
from pixcontrast._check.tensors import *  # noqa: F403
