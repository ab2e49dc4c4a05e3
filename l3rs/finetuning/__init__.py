"""One fine-tuning run, from its task to its report, and the comparison that `l3rs finetune` makes of many."""

from l3rs.extras import require

require(__name__, "images")
