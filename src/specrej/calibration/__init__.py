"""From recorded runs to a policy with a promise."""
