"""The parts of on_gpu.py, which imports them after it has decided whether Triton's interpreter runs the kernels."""
