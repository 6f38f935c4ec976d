"""wordlanes: large-vocabulary recurrent language models, from raw text to a perplexity.

A batch is arithmetic: the global batch of a step is a pure function of (manifest, seed, step).
Importing this package does nothing else (no logging set-up, no seeding, no device probing).
"""

__version__ = "0.1.0"
