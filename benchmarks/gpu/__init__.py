"""The parts of on_gpu.py. Parts with kernels are imported after it is known whether the interpreter runs them."""
