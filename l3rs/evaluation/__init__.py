"""Meta-evaluation: cells, studies and tuning, which make rows, and the tables, figures and pages that are made of these."""

from l3rs.extras import require

require(__name__, "images")
