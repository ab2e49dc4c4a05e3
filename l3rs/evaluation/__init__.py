"""Meta-evaluation: cells and arms, rows, and the tables, figures and pages that are made of rows."""
