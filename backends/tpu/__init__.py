"""The TPU: attention kernels in Pallas, compiled by Mosaic for v4, v5e, v5p, v6e and tpu7x."""
