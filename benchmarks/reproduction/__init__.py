"""Measures the published figures again: the plan, the data sets, the measurements, and the page with the results."""
