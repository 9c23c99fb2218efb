"""The radix tree and the pages of the KV pool."""
