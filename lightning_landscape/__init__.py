"""See, while you train, whether you sit in an asymmetric valley and whether averaging would help.

Callbacks for PyTorch Lightning that change nothing about your training, and the measurements behind
them as functions over tensors::

    module + batches -> objective -> direction -> slice -> score -> logger

The wings of the package:

- `measures`: what is measured, functions over tensors and objectives;
- `engine`: holds a module still while its weights move, and puts everything back bit for bit;
- `callbacks`: when to measure. `reporting`: where results go.

Importing the package imports nothing else: a name is loaded when it is first used. The names and
the files they come from stand in `__init__.pyi`.
"""

import lazy_loader

from lightning_landscape.__about__ import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
