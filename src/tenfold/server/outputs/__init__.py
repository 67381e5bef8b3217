"""From a backend's events to OpenAI's answers, whole or as stream chunks."""
