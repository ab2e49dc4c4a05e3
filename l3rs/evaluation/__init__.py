"""Meta-evaluation: cells, studies and tuning, which make rows, and the tables, figures and pages that are made of these."""
