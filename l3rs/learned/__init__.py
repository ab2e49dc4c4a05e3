"""The other learned optimizers: VeLO, Celo, Celo2, small_fc_lopt and muLO, each a `torch.optim.Optimizer`."""

from l3rs.learned.celo2 import Celo2
from l3rs.learned.small_fc import MuLO, SmallFC, mup_groups
from l3rs.learned.velo import Celo, VeLO

__all__ = ["Celo", "Celo2", "MuLO", "SmallFC", "VeLO", "mup_groups"]
