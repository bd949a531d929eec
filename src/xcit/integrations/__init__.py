"""Makes our models available in other libraries: one module per library."""
