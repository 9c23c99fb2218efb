"""Protocol cores of the services that programs can run against: bytes in and out, no sockets."""
