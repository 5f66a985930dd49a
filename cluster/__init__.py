"""Execution back ends: SLURM and this machine, ranks, preemption, atomic files."""
