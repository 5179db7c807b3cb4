"""The zoo: tuned values by environment, what they reach over seeds, and agents trained with them."""
