"""Floor 0: the words every other room uses. Knows nothing of models, memory or the network."""
