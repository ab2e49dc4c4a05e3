"""Meta-training: evolution strategies on EvoTorch, meta-gradients, the loop, its folder and its progress.

Its settings and the meta-gradients need no EvoTorch; all else is imported only where meta-training happens, since EvoTorch takes seconds.
"""

from l3rs.extras import require

require(__name__, "images")
