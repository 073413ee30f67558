"""The server: an ASGI application over a trained model, its events, keys, metrics and limits."""
