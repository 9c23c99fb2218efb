"""Text and messages to token ids and back."""
