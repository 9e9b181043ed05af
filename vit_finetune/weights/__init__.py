"""Files to tensors to our layout, with every tensor accounted for. Knows the network; no data, no training."""
