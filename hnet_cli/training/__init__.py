"""Training: step, losses, loop, and what surrounds them."""
