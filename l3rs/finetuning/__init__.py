"""One fine-tuning run, from its task to its report, and the comparison that `l3rs finetune` makes of many."""
