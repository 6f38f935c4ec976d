"""The verbs: each a thin main() over the library."""
