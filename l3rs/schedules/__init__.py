"""Learned schedules: what one is, its file, how one is found by name, path or Hub id, and how one is shared."""
