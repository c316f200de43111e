"""The border: every check of what a caller passes in, made once, before any work is done.

Each message names the argument, what was expected, what came, and the fix where there is one.
"""

from pixcontrast._check.options import *  # noqa: F403
from pixcontrast._check.tensors import *  # noqa: F403
