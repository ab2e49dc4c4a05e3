"""Meta-evaluation: cells and arms, rows, and the tables, figures and pages that are made of rows."""

from l3rs.extras import require

require(__name__, "images")
