"""The parts of on_gpu.py. Those that use kernels are imported once it is known whether these run in the interpreter."""
