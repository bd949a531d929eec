"""How good a model is, how fast, and how costly."""
