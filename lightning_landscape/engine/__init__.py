"""Holds a module still while its weights move, and puts everything back bit for bit."""
