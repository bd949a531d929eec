"""Makes our models available in other libraries: one module per library, which the user imports."""
