"""From the name of a model to an opened one, in one way for engines and rewards."""
