"""Studies of hyperparameters: search spaces, objectives that respect noise, workers on many machines, confirmation."""
