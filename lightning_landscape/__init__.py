"""Measure, while you train, whether the weights lie in an asymmetric valley and averaging helps.

Callbacks for PyTorch Lightning that change nothing about your training, and the measurements behind
them as functions over tensors::

    module + batches -> objective -> direction -> slice -> score -> logger

The folders:

- `measures`: what is measured, functions over tensors and objectives;
- `engine`: holds a module still while its weights move, and restores everything bit for bit;
- `callbacks`: when to measure;
- `reporting`: where results go;
- `analysis`: the same measurements after training.

Importing the package imports nothing else: a name is loaded when it is first used. `__init__.pyi`
lists the public names and their files.
"""

import lazy_loader

from lightning_landscape.__about__ import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
