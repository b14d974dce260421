"""The public names once more, under the module path that SmallPebble 3.0.5 had for them."""

from . import *
from . import __all__, abs, max, min  # noqa: F401
