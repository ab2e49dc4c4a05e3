"""Networks: making one, its pretrained weights, its head, and its groups of layers."""
