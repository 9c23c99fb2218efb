"""Kernels for GPUs in Triton. Nothing here is imported on a machine without one, but by tests and tools.

What could be proven without hardware is: numerics under Triton's interpreter, and compilation for each target with its
register and shared memory use (`ahead_of_time`). `python -m sgl_actors.kernels.triton.check` repeats the numerics on a device.
"""
