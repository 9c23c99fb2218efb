"""Constraints on what a model may write: values that compose, and the form in which they travel."""
