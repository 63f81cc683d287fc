"""The CPU: matmul and attention kernels that are made at run time for the processor at hand."""
