"""The model on one device: loading, forward batch, sampling."""
