"""The other learned optimizers: VeLO, Celo and Celo2, each a `torch.optim.Optimizer`."""

from l3rs.learned.celo2 import Celo2
from l3rs.learned.velo import Celo, VeLO

__all__ = ["Celo", "Celo2", "VeLO"]
