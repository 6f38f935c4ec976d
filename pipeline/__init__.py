"""wordlanes: large-vocabulary recurrent language models, from raw text to a perplexity.

A batch is arithmetic: the global batch of a step is a pure function of (manifest, seed, step).
Importing this package does nothing else (no logging set-up, no seeding, no device probing).
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["evaluate", "load_config", "load_model", "prepare", "train"]

if TYPE_CHECKING:
    from pipeline.interface import evaluate, load_config, load_model, prepare, train
else:

    def __getattr__(name: str) -> object:
        """The Python interface, imported when it is first asked for."""
        if name in __all__:
            from pipeline import interface

            return getattr(interface, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
