"""Networks: making one, its pretrained weights, its head, and its groups of layers."""

from l3rs.extras import require

require(__name__, "images")
