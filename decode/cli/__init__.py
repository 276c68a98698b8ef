"""decode: the command line.  A command parses, shows progress and prints; the work is the
function of its name.

What takes long to import (PyTorch, SciPy, HDF5) is imported inside the commands, so that `decode
--help` is instant.
"""

from importlib import import_module

from decode.cli.application import app

__all__ = ["app"]

# each adds its commands, which the help lists in this order
for _name in ("localize", "batch", "watch", "training", "calibrate", "tables", "figures", "about"):
    import_module(f"decode.cli.{_name}")
