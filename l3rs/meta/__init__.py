"""Meta-training by natural evolution strategies, on EvoTorch. Imported only where meta-training happens: EvoTorch takes seconds."""
