"""The controller: its config, what it sees of each layer, and how it decides (sections 3.1 and 3.2 of the paper)."""
