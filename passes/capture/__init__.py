"""Passes that bring a model into the form that all others expect (stage capture)."""
