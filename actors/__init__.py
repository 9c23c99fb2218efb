"""Everything that runs: the microkernel and the actors on it."""
