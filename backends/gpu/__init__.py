"""GPUs: attention in Pallas Triton and cuDNN, compiler options and block sizes as data."""
