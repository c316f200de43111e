"""Validation of arguments, once, before any work is done.

Every message has the form "name: expected ...; got ... (fix)".
"""

from pixcontrast._check.message import *  # noqa: F403
from pixcontrast._check.options import *  # noqa: F403
from pixcontrast._check.tensors import *  # noqa: F403
