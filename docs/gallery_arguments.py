"""With which arguments the gallery runs the examples."""

from pathlib import Path

_SHORTER = {"fromage_depth": ["--seeds=1"], "sgd_after_swa": ["--seeds=1"]}


def shorter(gallery, script):
    """Return arguments with which an example takes less than a minute."""
    return _SHORTER.get(Path(script["src_file"]).stem, [])
