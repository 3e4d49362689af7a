"""When to measure: the hooks and settings of the Lightning callbacks."""
