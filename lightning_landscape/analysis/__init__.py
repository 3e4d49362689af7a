"""After training: the monitors' measurements on checkpoints, and planes through several of them."""
