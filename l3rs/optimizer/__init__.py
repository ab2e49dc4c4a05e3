"""L3RS, the optimizer: its layers, its kernels, and its readable twin."""
