"""How a network came to be: the data it saw, the small default network, the trainer."""
