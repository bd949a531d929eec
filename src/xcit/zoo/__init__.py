"""Names to records to built models with weights."""
