"""Speed and memory, out of the algorithms' sight: nothing in here knows of them."""
