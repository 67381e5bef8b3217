"""The HTTP face: OpenAI's protocol, admin, metrics and the dashboard, over a ``Backend``."""
