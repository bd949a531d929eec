"""The parts of on_gpu.py. It imports them after it has set whether Triton's interpreter runs the kernels."""
