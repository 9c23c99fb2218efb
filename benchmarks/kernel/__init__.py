"""What each kernel of the CPU worker reaches, beside limits of the machine measured in the same run. See `benchmarks/kernels.py`."""
