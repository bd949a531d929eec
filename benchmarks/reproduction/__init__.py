"""The parts of reproduce.py: the plan, the checks of the data sets, the measurements, and the page of results."""
