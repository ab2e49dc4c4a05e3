"""Meta-training by natural evolution strategies, on EvoTorch. Imported only where meta-training happens: EvoTorch takes seconds."""

from l3rs.extras import require

require(__name__, "meta")
