"""Real clients at their defaults against a live server, each a module."""
