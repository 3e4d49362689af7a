"""Holds a module still while its weights move, and restores everything bit for bit."""
