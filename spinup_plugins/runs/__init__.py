"""What surrounds one ``learn()``: configuration, the run folder, evaluation and its statistics."""
