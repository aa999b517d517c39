"""Networks as frozen values: weights come in as a dictionary, so that tasks can be batched over them."""
