"""The training engine. It trains and evaluates any task, and contains no code for a particular task."""
