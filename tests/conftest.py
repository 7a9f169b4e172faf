import torch

# CI machines are shared: OpenMP threads that compete for cores make small networks ten times slower.
torch.set_num_threads(1)
